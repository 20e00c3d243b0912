//! From text to a validated [`Policy`].

use super::actions::{ACTIONS, Scope, scope_of};
use super::condition::{Condition, Operator};
use super::json::Json;
use super::keys::ConditionKey;
use super::pattern::Pattern;
use super::work::Work;
use super::{Effect, Policy, Principals, Statement};

/// Largest policy, in bytes of its text.
pub const POLICY_BYTES_MAX: usize = 20 * 1024;

/// Longest user name in an ARN or principal.
const PRINCIPAL_BYTES_MAX: usize = 2048;

/// Why a policy is refused: a sentence for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

type Result<T> = std::result::Result<T, PolicyError>;

/// Where in the policy something stands; begins every message.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// From 1.
    number: usize,
    sid: Option<&'a str>,
}

impl Place<'_> {
    fn error(self, field: &str, problem: impl std::fmt::Display) -> PolicyError {
        let number = self.number;
        match self.sid {
            Some(sid) => PolicyError(format!("statement {number} (Sid {sid:?}), {field}: {problem}")),
            None => PolicyError(format!("statement {number}, {field}: {problem}")),
        }
    }
}

fn error(problem: impl std::fmt::Display) -> PolicyError {
    PolicyError(problem.to_string())
}

pub(super) fn parse(text: &str, bucket: &str) -> Result<Policy> {
    if text.len() > POLICY_BYTES_MAX {
        return Err(error(format_args!("the policy is larger than {POLICY_BYTES_MAX} bytes")));
    }
    let document: Json =
        serde_json::from_str(text).map_err(|e| error(format_args!("the policy is not valid JSON: {e}")))?;
    let Json::Object(members) = document else {
        return Err(error(format_args!("the policy is {}, not an object", document.kind())));
    };
    let mut statements = None;
    // Without a version IAM assumes the older one, in which ${...} has no meaning.
    let mut variables = false;
    for (name, value) in &members {
        match (name.as_str(), value) {
            ("Version", Json::Text(version)) if version == "2012-10-17" => variables = true,
            ("Version", Json::Text(version)) if version == "2008-10-17" => {}
            ("Version", _) => return Err(error("Version: must be \"2012-10-17\" or \"2008-10-17\"")),
            ("Id", Json::Text(_)) => {}
            ("Id", other) => return Err(error(format_args!("Id: must be a string, not {}", other.kind()))),
            ("Statement", value) => statements = Some(value),
            (other, _) => return Err(error(format_args!("unknown field {other:?}"))),
        }
    }
    let list: &[Json] = match statements {
        None => return Err(error("the field Statement is missing")),
        Some(Json::List(list)) => list,
        Some(one) => std::slice::from_ref(one),
    };
    if list.is_empty() {
        return Err(error("Statement: must not be empty"));
    }
    let mut sids: Vec<&str> = Vec::new();
    let mut parsed = Vec::with_capacity(list.len());
    for (index, statement) in list.iter().enumerate() {
        let Json::Object(members) = statement else {
            return Err(Place { number: index + 1, sid: None }
                .error("Statement", format_args!("must be an object, not {}", statement.kind())));
        };
        let sid = members.iter().find_map(|(name, value)| match value {
            Json::Text(sid) if name == "Sid" && !sid.is_empty() => Some(sid.as_str()),
            _ => None,
        });
        let place = Place { number: index + 1, sid };
        if let Some(sid) = sid {
            if sids.contains(&sid) {
                return Err(place.error("Sid", "is used by more than one statement"));
            }
            sids.push(sid);
        }
        parsed.push(parse_statement(members, place, bucket, variables)?);
    }
    Ok(Policy { statements: parsed })
}

fn parse_statement(members: &[(String, Json)], place: Place<'_>, bucket: &str, variables: bool) -> Result<Statement> {
    let mut effect = None;
    let mut principal = None;
    let mut actions = None;
    let mut resources = None;
    let mut conditions = Vec::new();
    for (name, value) in members {
        let field = name.as_str();
        match field {
            "Sid" => {
                if !matches!(value, Json::Text(_)) {
                    return Err(place.error(field, format_args!("must be a string, not {}", value.kind())));
                }
            }
            "Effect" => {
                effect = Some(match value {
                    Json::Text(t) if t == "Allow" => Effect::Allow,
                    Json::Text(t) if t == "Deny" => Effect::Deny,
                    _ => return Err(place.error(field, "must be \"Allow\" or \"Deny\"")),
                });
            }
            "Principal" | "NotPrincipal" => {
                let parsed = parse_principals(value, field, place)?;
                if principal.replace(parsed).is_some() {
                    return Err(place.error(field, "Principal and NotPrincipal exclude each other"));
                }
            }
            "Action" | "NotAction" => {
                let parsed = (parse_actions(value, field, place)?, field == "NotAction");
                if actions.replace(parsed).is_some() {
                    return Err(place.error(field, "Action and NotAction exclude each other"));
                }
            }
            "Resource" | "NotResource" => {
                let parsed = (parse_resources(value, field, place, bucket, variables)?, field == "NotResource");
                if resources.replace(parsed).is_some() {
                    return Err(place.error(field, "Resource and NotResource exclude each other"));
                }
            }
            "Condition" => conditions = parse_conditions(value, place, variables)?,
            _ => return Err(place.error(field, "is not a known field")),
        }
    }
    let missing = |field: &'static str| move || place.error(field, "is missing");
    let effect = effect.ok_or_else(missing("Effect"))?;
    let principal = principal.ok_or_else(missing("Principal"))?;
    let (actions, actions_negated) = actions.ok_or_else(missing("Action"))?;
    let (resources, resources_negated) = resources.ok_or_else(missing("Resource"))?;
    if !actions_negated && !resources_negated {
        for (text, _) in &actions {
            let applies = scope_of(text)
                .is_none_or(|scope| resources.iter().any(|(resource, _)| may_name(resource, scope, bucket)));
            if !applies {
                return Err(place.error(
                    "Resource",
                    format_args!("the action {text:?} does not apply to any resource of the statement"),
                ));
            }
        }
    }
    Ok(Statement {
        effect,
        principal,
        actions: actions.into_iter().map(|(_, p)| p).collect(),
        actions_negated,
        resources: resources.into_iter().map(|(_, p)| p).collect(),
        resources_negated,
        conditions,
    })
}

/// A string or a non-empty list of strings.
fn texts<'a>(value: &'a Json, field: &str, place: Place<'_>) -> Result<Vec<&'a str>> {
    let one = |value: &'a Json| match value {
        Json::Text(text) => Ok(text.as_str()),
        other => Err(place.error(field, format_args!("must be a string or a list of strings, not {}", other.kind()))),
    };
    match value {
        Json::List(list) if list.is_empty() => Err(place.error(field, "must not be empty")),
        Json::List(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn parse_principals(value: &Json, field: &str, place: Place<'_>) -> Result<Principals> {
    let negated = field == "NotPrincipal";
    let mut principals = Principals { everybody: false, users: Vec::new(), negated };
    let members = match value {
        Json::Text(text) if text == "*" && !negated => {
            principals.everybody = true;
            return Ok(principals);
        }
        Json::Text(text) if text == "*" => return Err(place.error(field, "\"*\" would leave nobody")),
        Json::Object(members) if !members.is_empty() => members,
        _ => return Err(place.error(field, "must be \"*\" or an object such as {\"AWS\": \"USER\"}")),
    };
    for (kind, value) in members {
        match kind.as_str() {
            "AWS" | "CanonicalUser" => {}
            "Service" | "Federated" => {
                return Err(place.error(field, format_args!("principals of the kind {kind:?} are not supported")));
            }
            _ => return Err(place.error(field, format_args!("{kind:?} is not a kind of principal"))),
        }
        for text in texts(value, field, place)? {
            if text == "*" {
                principals.everybody = true;
            } else {
                let user = user_name(text).map_err(|problem| place.error(field, format_args!("{text:?} {problem}")))?;
                principals.users.push(user.to_owned());
            }
        }
    }
    if negated && principals.everybody {
        return Err(place.error(field, "\"*\" would leave nobody"));
    }
    Ok(principals)
}

/// The user that a principal names: by an ARN, or plainly.
fn user_name(text: &str) -> std::result::Result<&str, &'static str> {
    let name = match text.strip_prefix("arn:") {
        None => text,
        Some(_) => {
            let parts: Vec<&str> = text.splitn(6, ':').collect();
            let [_, _, "iam", "", account, what] = parts[..] else {
                return Err("is not the ARN of an IAM user");
            };
            if !account.is_empty() && account != "*" && !account.bytes().all(|b| b.is_ascii_digit()) {
                return Err("is not the ARN of an IAM user");
            }
            let Some(path) = what.strip_prefix("user/") else {
                return Err("does not name a user: accounts, roles and groups do not exist here");
            };
            path.rsplit('/').next().unwrap_or(path)
        }
    };
    if name.is_empty() || name.len() > PRINCIPAL_BYTES_MAX {
        return Err("is not a user name");
    }
    if name.contains(['*', '?', ':', '/']) {
        return Err("is not a user name; a wildcard is only allowed as \"*\" alone");
    }
    Ok(name)
}

fn parse_actions(value: &Json, field: &str, place: Place<'_>) -> Result<Vec<(String, Pattern)>> {
    let mut actions = Vec::new();
    for text in texts(value, field, place)? {
        let pattern = Pattern::wildcards(text);
        let work = Work::of_decision();
        if !ACTIONS.iter().any(|(name, _)| pattern.matches_ignoring_case(name, &work)) {
            return Err(place.error(field, format_args!("{text:?} is not an action of S3")));
        }
        actions.push((text.to_owned(), pattern));
    }
    Ok(actions)
}

fn parse_resources(
    value: &Json,
    field: &str,
    place: Place<'_>,
    bucket: &str,
    variables: bool,
) -> Result<Vec<(String, Pattern)>> {
    let mut resources = Vec::new();
    for text in texts(value, field, place)? {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", "aws" | "aws-cn" | "aws-us-gov", "s3", "", "", path] = parts[..] else {
            return Err(place.error(field, format_args!("{text:?} is not of the form \"arn:aws:s3:::BUCKET/KEY\"")));
        };
        // What follows the bucket's name must not continue the name: only an end, a key, or a wildcard.
        let of_this_bucket =
            path.strip_prefix(bucket).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '*', '?']));
        if !of_this_bucket {
            return Err(place.error(field, format_args!("{text:?} does not belong to the bucket {bucket:?}")));
        }
        let pattern = if variables {
            Pattern::with_variables(path, true).map_err(|e| place.error(field, e))?
        } else {
            Pattern::wildcards(path)
        };
        resources.push((path.to_owned(), pattern));
    }
    Ok(resources)
}

/// Whether a resource pattern, which begins with the bucket's name, can match something of the scope.
fn may_name(path: &str, scope: Scope, bucket: &str) -> bool {
    let rest = &path[bucket.len()..];
    match scope {
        Scope::Bucket => !rest.starts_with(['/', '?']) && rest.bytes().all(|b| b == b'*'),
        Scope::Object => !rest.is_empty(),
    }
}

fn parse_conditions(value: &Json, place: Place<'_>, variables: bool) -> Result<Vec<Condition>> {
    const FIELD: &str = "Condition";
    let Json::Object(operators) = value else {
        return Err(place.error(FIELD, format_args!("must be an object, not {}", value.kind())));
    };
    let mut conditions = Vec::new();
    for (name, keys) in operators {
        let operator = Operator::parse(name)
            .ok_or_else(|| place.error(FIELD, format_args!("{name:?} is not a supported condition operator")))?;
        let Json::Object(keys) = keys else {
            return Err(place.error(FIELD, format_args!("{name} must hold an object, not {}", keys.kind())));
        };
        for (key_name, values) in keys {
            let key = ConditionKey::parse(key_name)
                .ok_or_else(|| place.error(FIELD, format_args!("{key_name:?} is not a supported condition key")))?;
            if !operator.fits(&key) {
                return Err(place.error(FIELD, format_args!("{name} cannot be used with the key {key_name:?}")));
            }
            let values = match values {
                Json::List(list) if list.is_empty() => {
                    return Err(place.error(FIELD, format_args!("{key_name:?} has no values")));
                }
                Json::List(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            let mut operands = Vec::with_capacity(values.len());
            for value in values {
                let text = match value {
                    Json::Text(text) | Json::Number(text) => text.as_str(),
                    Json::Bool(true) => "true",
                    Json::Bool(false) => "false",
                    other => {
                        return Err(place
                            .error(FIELD, format_args!("a value of {key_name:?} is {}, not a string", other.kind())));
                    }
                };
                let operand = operator
                    .operand(text, variables)
                    .map_err(|problem| place.error(FIELD, format_args!("{name} of {key_name:?}: {problem}")))?;
                operands.push(operand);
            }
            conditions.push(Condition { operator, key, operands });
        }
    }
    Ok(conditions)
}
