//! Patterns with `*`, `?` and policy variables.
//!
//! A pattern is a row of pieces between its `*`. The first has to stand at the text's beginning, the last at its end,
//! and each of the others is looked for after the one before, where it comes first: a later place would only leave less
//! for what follows. A piece is looked for as by Knuth, Morris and Pratt, so that pattern and text are each gone
//! through once. Only a piece with `?` between two `*` is tried at each place; what that may cost is bounded by
//! [`Work`].

use std::fmt;

use super::keys::{ConditionKey, Facts};
use super::work::Work;

/// One element of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// This character.
    Char(char),
    /// `?`: one character.
    AnyChar,
    /// `*`: any characters, also none.
    AnyRun,
    /// `${key}` or `${key, 'default'}`: what the request says, taken literally.
    Variable(ConditionKey, Option<String>),
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    has_variables: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PatternError {
    /// `${` without `}`.
    Unclosed,
    /// A variable that does not exist here.
    UnknownVariable(String),
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclosed => write!(f, "a policy variable lacks its closing brace"),
            Self::UnknownVariable(name) => write!(f, "the policy variable ${{{name}}} is not supported"),
        }
    }
}

impl Pattern {
    /// Patterns are kept for as long as their policy is: a vector that grew may have room for twice as many tokens.
    fn new(mut tokens: Vec<Token>, has_variables: bool) -> Self {
        tokens.shrink_to_fit();
        Self { tokens, has_variables }
    }

    /// A pattern with wildcards only.
    pub(super) fn wildcards(text: &str) -> Self {
        let tokens = text
            .chars()
            .map(|c| match c {
                '*' => Token::AnyRun,
                '?' => Token::AnyChar,
                c => Token::Char(c),
            })
            .collect();
        Self::new(tokens, false)
    }

    /// A pattern with policy variables, and with wildcards where `wildcards` is set.
    pub(super) fn with_variables(text: &str, wildcards: bool) -> Result<Self, PatternError> {
        let mut tokens = Vec::new();
        let mut has_variables = false;
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(inside) = rest.strip_prefix("${") {
                let end = inside.find('}').ok_or(PatternError::Unclosed)?;
                let (name, after) = (&inside[..end], &inside[end + 1..]);
                match name {
                    "*" | "?" | "$" => tokens.extend(name.chars().map(Token::Char)),
                    _ => {
                        tokens.push(variable(name)?);
                        has_variables = true;
                    }
                }
                rest = after;
                continue;
            }
            tokens.push(match c {
                '*' if wildcards => Token::AnyRun,
                '?' if wildcards => Token::AnyChar,
                c => Token::Char(c),
            });
            rest = &rest[c.len_utf8()..];
        }
        Ok(Self::new(tokens, has_variables))
    }

    /// Text without any special meaning.
    pub(super) fn literal(text: &str) -> Self {
        Self::new(text.chars().map(Token::Char).collect(), false)
    }

    /// Whether the pattern contains `*` or `?`.
    pub(super) fn has_wildcards(&self) -> bool {
        self.tokens.iter().any(|t| matches!(t, Token::AnyRun | Token::AnyChar))
    }

    /// Whether the pattern has a policy variable that stands for a tag of the stored object.
    pub(super) fn names_object_tags(&self) -> bool {
        self.has_variables
            && self.tokens.iter().any(|t| matches!(t, Token::Variable(ConditionKey::ExistingObjectTag(_), _)))
    }

    /// Whether the whole text matches. If the work is exhausted, the answer means nothing.
    pub(super) fn matches(&self, text: &str, facts: &dyn Facts, work: &Work) -> bool {
        self.matches_by(text, facts, work, |a, b| a == b)
    }

    /// As [`Self::matches`], letters of either case being equal. For condition values.
    pub(super) fn matches_folded(&self, text: &str, facts: &dyn Facts, work: &Work) -> bool {
        self.matches_by(text, facts, work, |a, b| a == b || a.to_lowercase().eq(b.to_lowercase()))
    }

    /// As [`Self::matches_folded`], for patterns without variables.
    pub(super) fn matches_ignoring_case(&self, text: &str, work: &Work) -> bool {
        matches_tokens(&self.tokens, text, work, |a, b| a.eq_ignore_ascii_case(&b))
    }

    fn matches_by(&self, text: &str, facts: &dyn Facts, work: &Work, same: impl Fn(char, char) -> bool) -> bool {
        if !self.has_variables {
            return matches_tokens(&self.tokens, text, work, same);
        }
        // All of it is put together, whatever of the text is looked at then.
        if !work.spend(self.tokens.len()) {
            return false;
        }
        let mut resolved = Vec::with_capacity(self.tokens.len());
        for token in &self.tokens {
            let Token::Variable(key, default) = token else {
                resolved.push(token.clone());
                continue;
            };
            if !work.spend(facts.cost(key)) {
                return false;
            }
            let values = facts.values(key);
            // A variable without a value matches nothing, so that `home/${aws:username}/*` is nobody's.
            let Some(value) = values.first().map(|value| &**value).or(default.as_deref()) else { return false };
            // Nor does what is longer than the text: a client that sends long values is not to have them put together.
            if !work.spend(value.len()) || value.chars().count() > text.len() {
                return false;
            }
            resolved.extend(value.chars().map(Token::Char));
            if resolved.len() > self.tokens.len() + text.len() {
                return false;
            }
        }
        matches_tokens(&resolved, text, work, same)
    }
}

fn variable(text: &str) -> Result<Token, PatternError> {
    let unknown = || PatternError::UnknownVariable(text.to_owned());
    let (name, default) = match text.split_once(',') {
        None => (text, None),
        Some((name, default)) => {
            let default = default.trim().strip_prefix('\'').and_then(|d| d.strip_suffix('\'')).ok_or_else(unknown)?;
            (name, Some(default.to_owned()))
        }
    };
    let key = ConditionKey::parse(name.trim()).filter(ConditionKey::is_variable).ok_or_else(unknown)?;
    Ok(Token::Variable(key, default))
}

fn matches_tokens(tokens: &[Token], text: &str, work: &Work, same: impl Fn(char, char) -> bool) -> bool {
    let mut pieces = tokens.split(|token| *token == Token::AnyRun);
    let first = pieces.next().unwrap_or_default();
    let Some(rest) = after_start(first, text, work, &same) else { return false };
    // What follows the last `*`; without any `*` the first piece is the whole pattern.
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    let Some(mut rest) = before_end(last, rest, work, &same) else { return false };
    for piece in pieces {
        match after_first(piece, rest, work, &same) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}

/// Whether a token other than `*` stands for a character.
fn fits(token: &Token, c: char, same: &impl Fn(char, char) -> bool) -> bool {
    match token {
        Token::Char(t) => same(*t, c),
        Token::AnyChar => true,
        Token::AnyRun | Token::Variable(..) => false,
    }
}

/// What of the text comes after a piece that stands at its beginning.
fn after_start<'t>(piece: &[Token], text: &'t str, work: &Work, same: &impl Fn(char, char) -> bool) -> Option<&'t str> {
    let mut chars = text.chars();
    for token in piece {
        if !work.spend(1) || !fits(token, chars.next()?, same) {
            return None;
        }
    }
    Some(chars.as_str())
}

/// What of the text comes before a piece that stands at its end.
fn before_end<'t>(piece: &[Token], text: &'t str, work: &Work, same: &impl Fn(char, char) -> bool) -> Option<&'t str> {
    let mut chars = text.chars();
    for token in piece.iter().rev() {
        if !work.spend(1) || !fits(token, chars.next_back()?, same) {
            return None;
        }
    }
    Some(chars.as_str())
}

/// What of the text comes after the first place where a piece stands.
fn after_first<'t>(piece: &[Token], text: &'t str, work: &Work, same: &impl Fn(char, char) -> bool) -> Option<&'t str> {
    if piece.is_empty() {
        return Some(text);
    }
    // A piece has as many characters as tokens.
    if piece.len() > text.len() {
        return None;
    }
    let mut chars = Vec::with_capacity(piece.len());
    for token in piece {
        match token {
            Token::Char(c) => chars.push(*c),
            _ => return after_first_tried(piece, text, work, same),
        }
    }
    if !work.spend(2 * chars.len()) {
        return None;
    }
    // For each beginning of the piece: how much of its end is also its beginning.
    let mut borders = vec![0; chars.len()];
    for index in 1..chars.len() {
        let mut border = borders[index - 1];
        while border > 0 && !same(chars[index], chars[border]) {
            border = borders[border - 1];
        }
        borders[index] = border + usize::from(same(chars[index], chars[border]));
    }
    let mut found = 0;
    for (at, c) in text.char_indices() {
        // Each step back undoes one forward.
        if !work.spend(2) {
            return None;
        }
        while found > 0 && !same(chars[found], c) {
            found = borders[found - 1];
        }
        found += usize::from(same(chars[found], c));
        if found == chars.len() {
            return Some(&text[at + c.len_utf8()..]);
        }
    }
    None
}

/// As [`after_first`], for pieces with `?`, which are not equal to themselves everywhere.
fn after_first_tried<'t>(
    piece: &[Token],
    text: &'t str,
    work: &Work,
    same: &impl Fn(char, char) -> bool,
) -> Option<&'t str> {
    text.char_indices().find_map(|(at, _)| after_start(piece, &text[at..], work, same))
}

#[cfg(test)]
mod tests;
