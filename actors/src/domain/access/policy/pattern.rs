//! Patterns with `*`, `?` and policy variables.
//!
//! Matching keeps one place to go back to, the last `*`: a later `*` can only be reached with a shorter rest, so going
//! back further never helps. The cost is at most pattern length times text length, whatever a client sends.

use std::fmt;

use super::keys::{ConditionKey, Facts};

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
        Self { tokens, has_variables: false }
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
        Ok(Self { tokens, has_variables })
    }

    /// Text without any special meaning.
    pub(super) fn literal(text: &str) -> Self {
        Self { tokens: text.chars().map(Token::Char).collect(), has_variables: false }
    }

    /// Whether the pattern contains `*` or `?`.
    pub(super) fn has_wildcards(&self) -> bool {
        self.tokens.iter().any(|t| matches!(t, Token::AnyRun | Token::AnyChar))
    }

    /// Whether the whole text matches.
    pub(super) fn matches(&self, text: &str, facts: &dyn Facts) -> bool {
        self.matches_by(text, facts, |a, b| a == b)
    }

    /// Whether the whole text matches, letters of either case being equal. For condition values.
    pub(super) fn matches_folded(&self, text: &str, facts: &dyn Facts) -> bool {
        self.matches_by(text, facts, |a, b| a == b || a.to_lowercase().eq(b.to_lowercase()))
    }

    /// As [`Self::matches_folded`], for patterns without variables.
    pub(super) fn matches_ignoring_case(&self, text: &str) -> bool {
        matches_tokens(&self.tokens, text, |a, b| a.eq_ignore_ascii_case(&b))
    }

    fn matches_by(&self, text: &str, facts: &dyn Facts, same: impl Fn(char, char) -> bool) -> bool {
        if !self.has_variables {
            return matches_tokens(&self.tokens, text, same);
        }
        let mut resolved = Vec::with_capacity(self.tokens.len());
        for token in &self.tokens {
            match token {
                Token::Variable(key, default) => match (facts.values(key).first(), default) {
                    (Some(value), _) => resolved.extend(value.chars().map(Token::Char)),
                    (None, Some(default)) => resolved.extend(default.chars().map(Token::Char)),
                    // A variable without a value matches nothing, so that `home/${aws:username}/*` is nobody's.
                    (None, None) => return false,
                },
                other => resolved.push(other.clone()),
            }
        }
        matches_tokens(&resolved, text, same)
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

fn matches_tokens(tokens: &[Token], text: &str, same: impl Fn(char, char) -> bool) -> bool {
    let (mut token, mut at) = (0, 0);
    // Where to go on if what follows the last `*` does not match: the token after it, and the text it has yet to eat.
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() {
        let c = text[at..].chars().next().expect("`at` is a character boundary before the end");
        let step = match tokens.get(token) {
            Some(Token::AnyRun) => {
                retry = Some((token + 1, at));
                token += 1;
                continue;
            }
            Some(Token::AnyChar) => true,
            Some(Token::Char(t)) => same(*t, c),
            Some(Token::Variable(..)) | None => false,
        };
        if step {
            token += 1;
            at += c.len_utf8();
        } else if let Some((after_run, from)) = retry {
            let eaten = text[from..].chars().next().map_or(text.len(), |c| from + c.len_utf8());
            retry = Some((after_run, eaten));
            token = after_run;
            at = eaten;
        } else {
            return false;
        }
    }
    tokens[token.min(tokens.len())..].iter().all(|t| *t == Token::AnyRun)
}

#[cfg(test)]
mod tests {
    use super::super::keys::NoFacts;
    use super::*;

    /// The definition, by recursion: what the iterative matcher must agree with.
    fn reference(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| reference(rest, &text[n..])),
            Some(('?', rest)) => !text.is_empty() && reference(rest, &text[1..]),
            Some((c, rest)) => text.first() == Some(c) && reference(rest, &text[1..]),
        }
    }

    proptest::proptest! {
        #[test]
        fn matching_agrees_with_its_definition(pattern in "[ab*?é]{0,9}", text in "[abé]{0,9}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            let expected = reference(&chars(&pattern), &chars(&text));
            proptest::prop_assert_eq!(Pattern::wildcards(&pattern).matches(&text, &NoFacts), expected);
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = Pattern::wildcards(&"a*".repeat(2_000));
        let text = format!("{}b", "a".repeat(1_000));
        assert!(!pattern.matches(&text, &NoFacts));
        let pattern = Pattern::wildcards(&format!("{}b", "*a".repeat(500)));
        assert!(!pattern.matches(&"a".repeat(1_024), &NoFacts));
    }

    #[test]
    fn variables_are_taken_literally_and_match_nothing_when_absent() {
        struct Named(&'static str);
        impl Facts for Named {
            fn values(&self, key: &ConditionKey) -> Vec<std::borrow::Cow<'_, str>> {
                if *key == ConditionKey::UserName { vec![self.0.into()] } else { Vec::new() }
            }
        }
        let pattern = Pattern::with_variables("b/home/${aws:username}/*", true).unwrap();
        assert!(pattern.matches("b/home/ann/x", &Named("ann")));
        assert!(!pattern.matches("b/home/bob/x", &Named("ann")));
        assert!(!pattern.matches("b/home/bob/x", &Named("*")), "a user named * gains nothing");
        assert!(!pattern.matches("b/home//x", &NoFacts));
        let pattern = Pattern::with_variables("b/${aws:username, 'guest'}/${*}${$}", true).unwrap();
        assert!(pattern.matches("b/guest/*$", &NoFacts));
        assert_eq!(Pattern::with_variables("b/${aws:username", true), Err(PatternError::Unclosed));
        assert!(matches!(Pattern::with_variables("${aws:nonsense}", true), Err(PatternError::UnknownVariable(_))));
    }
}
