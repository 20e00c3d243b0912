//! Condition operators.

use std::net::IpAddr;

use super::date;
use super::keys::{ConditionKey, Facts};
use super::pattern::Pattern;
use super::work::Work;

/// How a condition with several values on the request's side combines them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// No prefix: keys with one value.
    Plain,
    /// `ForAnyValue:`
    Any,
    /// `ForAllValues:`
    All,
}

/// An ordering of numbers or dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, left: T, right: T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

/// What an operator compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Text { ignore_case: bool, wildcards: bool },
    Number(Order),
    Date(Order),
    Bool,
    Ip,
    Null,
}

/// A condition operator, as named in a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operator {
    quantifier: Quantifier,
    comparison: Comparison,
    negated: bool,
    if_exists: bool,
}

impl Operator {
    /// An operator by its name, in the case that IAM documents.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (quantifier, name) = if let Some(rest) = name.strip_prefix("ForAnyValue:") {
            (Quantifier::Any, rest)
        } else if let Some(rest) = name.strip_prefix("ForAllValues:") {
            (Quantifier::All, rest)
        } else {
            (Quantifier::Plain, name)
        };
        let (name, if_exists) = name.strip_suffix("IfExists").map_or((name, false), |n| (n, true));
        let text = |ignore_case, wildcards| Comparison::Text { ignore_case, wildcards };
        let (comparison, negated) = match name {
            "StringEquals" => (text(false, false), false),
            "StringNotEquals" => (text(false, false), true),
            "StringEqualsIgnoreCase" => (text(true, false), false),
            "StringNotEqualsIgnoreCase" => (text(true, false), true),
            "StringLike" | "ArnLike" | "ArnEquals" => (text(false, true), false),
            "StringNotLike" | "ArnNotLike" | "ArnNotEquals" => (text(false, true), true),
            "NumericEquals" => (Comparison::Number(Order::Equal), false),
            "NumericNotEquals" => (Comparison::Number(Order::Equal), true),
            "NumericLessThan" => (Comparison::Number(Order::Less), false),
            "NumericLessThanEquals" => (Comparison::Number(Order::LessOrEqual), false),
            "NumericGreaterThan" => (Comparison::Number(Order::Greater), false),
            "NumericGreaterThanEquals" => (Comparison::Number(Order::GreaterOrEqual), false),
            "DateEquals" => (Comparison::Date(Order::Equal), false),
            "DateNotEquals" => (Comparison::Date(Order::Equal), true),
            "DateLessThan" => (Comparison::Date(Order::Less), false),
            "DateLessThanEquals" => (Comparison::Date(Order::LessOrEqual), false),
            "DateGreaterThan" => (Comparison::Date(Order::Greater), false),
            "DateGreaterThanEquals" => (Comparison::Date(Order::GreaterOrEqual), false),
            "Bool" => (Comparison::Bool, false),
            "IpAddress" => (Comparison::Ip, false),
            "NotIpAddress" => (Comparison::Ip, true),
            // Null asks for presence: with IfExists or a quantifier it would mean nothing.
            "Null" if !if_exists && quantifier == Quantifier::Plain => (Comparison::Null, false),
            _ => return None,
        };
        Some(Self { quantifier, comparison, negated, if_exists })
    }

    /// Whether the operator makes sense for a key.
    pub(super) fn fits(self, key: &ConditionKey) -> bool {
        match self.comparison {
            Comparison::Ip => *key == ConditionKey::SourceIp,
            Comparison::Bool => *key == ConditionKey::SecureTransport,
            Comparison::Date(_) => matches!(key, ConditionKey::CurrentTime | ConditionKey::EpochTime),
            Comparison::Number(_) => {
                !matches!(key, ConditionKey::SourceIp | ConditionKey::SecureTransport | ConditionKey::CurrentTime)
            }
            Comparison::Text { .. } => *key != ConditionKey::SourceIp,
            Comparison::Null => true,
        }
    }

    /// A value of the policy, checked and prepared.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn operand(self, text: &str, variables: bool) -> Result<Operand, String> {
        match self.comparison {
            Comparison::Text { wildcards, .. } => {
                let pattern = match (variables, wildcards) {
                    (true, _) => Pattern::with_variables(text, wildcards).map_err(|e| e.to_string())?,
                    (false, true) => Pattern::wildcards(text),
                    (false, false) => Pattern::literal(text),
                };
                Ok(Operand::Text(pattern))
            }
            Comparison::Number(_) => parse_number(text).map(Operand::Number).ok_or_else(|| not_a("number", text)),
            Comparison::Date(_) => date::parse_ms(text).map(Operand::Date).ok_or_else(|| not_a("date", text)),
            Comparison::Bool | Comparison::Null => {
                parse_bool(text).map(Operand::Bool).ok_or_else(|| not_a("boolean", text))
            }
            Comparison::Ip => {
                Network::parse(text).map(Operand::Network).ok_or_else(|| not_a("IP address or CIDR block", text))
            }
        }
    }
}

fn not_a(what: &str, text: &str) -> String {
    format!("{text:?} is not a {what}")
}

fn parse_number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

fn parse_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// A value in a policy.
#[derive(Debug, Clone)]
pub(super) enum Operand {
    Text(Pattern),
    Number(f64),
    /// Milliseconds since 1970.
    Date(i64),
    Bool(bool),
    Network(Network),
}

/// How many bits of an IPv6 address say that it is a mapped IPv4 address.
const MAPPED_BITS: u8 = 96;

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    base: IpAddr,
    prefix_bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let base: IpAddr = address.parse().ok()?;
        let bits_max = if base.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            None => bits_max,
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().ok().filter(|b| *b <= bits_max)?,
            Some(_) => return None,
        };
        // Clients are compared by their IPv4 addresses, so that a block of mapped ones would be nobody's.
        match base.to_canonical() {
            canonical if canonical != base && prefix_bits >= MAPPED_BITS => {
                Some(Self { base: canonical, prefix_bits: prefix_bits - MAPPED_BITS })
            }
            _ => Some(Self { base, prefix_bits }),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        // A dual-stack socket shows IPv4 clients as mapped IPv6 addresses.
        let address = address.to_canonical();
        let shift = |bits: u32| bits - u32::from(self.prefix_bits);
        match (self.base, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0,
            _ => false,
        }
    }
}

/// One key under one operator, with the values that it is compared to.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) operator: Operator,
    pub(super) key: ConditionKey,
    pub(super) operands: Vec<Operand>,
}

impl Condition {
    /// Whether the request satisfies the condition.
    pub(super) fn holds(&self, facts: &dyn Facts, work: &Work) -> bool {
        if !work.spend(facts.cost(&self.key)) {
            return false;
        }
        let values = facts.values(&self.key);
        let Operator { quantifier, comparison, negated, if_exists } = self.operator;
        if comparison == Comparison::Null {
            return self.operands.iter().any(|o| matches!(o, Operand::Bool(absent) if *absent == values.is_empty()));
        }
        if values.is_empty() {
            // IAM's rules for a missing key: a negated operator holds, as does ForAllValues; ForAnyValue does not.
            return if_exists
                || match quantifier {
                    Quantifier::Plain => negated,
                    Quantifier::Any => false,
                    Quantifier::All => true,
                };
        }
        // One value holds if it equals one of the policy's, or for a negated operator none of them.
        let holds = |value: &str| self.operands.iter().any(|o| self.equals(value, o, facts, work)) != negated;
        match quantifier {
            Quantifier::All => values.iter().all(|v| holds(v)),
            Quantifier::Any => values.iter().any(|v| holds(v)),
            // Several values under a plain operator: a negated one must hold for each, else one value could hide
            // another.
            Quantifier::Plain if negated => values.iter().all(|v| holds(v)),
            Quantifier::Plain => values.iter().any(|v| holds(v)),
        }
    }

    fn equals(&self, value: &str, operand: &Operand, facts: &dyn Facts, work: &Work) -> bool {
        // Texts are charged for as far as they are looked at. Once the work is exhausted nothing counts that is found,
        // and what is equal ends the search.
        let looked_at = if matches!(operand, Operand::Text(_)) { 0 } else { value.len() };
        if !work.spend(1 + looked_at) {
            return true;
        }
        match (self.operator.comparison, operand) {
            (Comparison::Text { ignore_case: true, .. }, Operand::Text(pattern)) => {
                pattern.matches_folded(value, facts, work)
            }
            (Comparison::Text { .. }, Operand::Text(pattern)) => pattern.matches(value, facts, work),
            (Comparison::Number(order), Operand::Number(n)) => parse_number(value).is_some_and(|v| order.holds(v, *n)),
            (Comparison::Date(order), Operand::Date(ms)) => date::parse_ms(value).is_some_and(|v| order.holds(v, *ms)),
            (Comparison::Bool, Operand::Bool(b)) => parse_bool(value) == Some(*b),
            (Comparison::Ip, Operand::Network(network)) => value.parse().is_ok_and(|ip| network.contains(ip)),
            _ => false,
        }
    }

    /// Whether the tags of the stored object have a say: as the key, or by a variable in a value.
    pub(super) fn looks_at_object_tags(&self) -> bool {
        matches!(self.key, ConditionKey::ExistingObjectTag(_))
            || self.operands.iter().any(|o| matches!(o, Operand::Text(pattern) if pattern.names_object_tags()))
    }

    /// Whether the condition limits who can make the request to fixed users or networks; see
    /// [`super::Policy::is_public`].
    pub(super) fn narrows_callers(&self) -> bool {
        if self.operator.negated || self.operator.if_exists || self.operator.quantifier == Quantifier::All {
            return false;
        }
        match self.key {
            ConditionKey::SourceIp => self.operands.iter().all(|o| match o {
                // Wider than a /8, or a /32 of IPv6, counts as everybody, as in S3.
                Operand::Network(n) => n.prefix_bits >= if n.base.is_ipv4() { 8 } else { 32 },
                _ => false,
            }),
            ConditionKey::UserName | ConditionKey::PrincipalArn => {
                self.operands.iter().all(|o| matches!(o, Operand::Text(p) if !p.has_wildcards()))
            }
            _ => false,
        }
    }
}
