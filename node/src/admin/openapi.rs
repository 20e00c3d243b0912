//! The description of the admin API, made from its handlers.

use axum::Json;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    buckets, chunks, cluster, events, health, journal, keys, layout, nodes, objects, repair, shards, status, tiers,
    users,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast admin API",
        description = "What the command line is a client of. Errors carry a code for programs and a message for people. \
                       Times are milliseconds since 1970. Fields may be added; clients ignore those they do not know.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "http://127.0.0.1:9001")),
    modifiers(&Token),
    security(("admin_token" = [])),
    tags(
        (name = "node", description = "The node that answers"),
        (name = "health", description = "Health and metrics, without a token"),
        (name = "users", description = "Users and their access keys"),
        (name = "buckets", description = "Buckets"),
        (name = "objects", description = "Where objects' bytes are"),
        (name = "tiers", description = "Cold tiers, and what moves there and back"),
        (name = "cluster", description = "The cluster as a whole"),
        (name = "nodes", description = "The nodes of the cluster"),
        (name = "layout", description = "Which nodes there are to be"),
        (name = "shards", description = "Who holds what"),
        (name = "repair", description = "Healing"),
        (name = "events", description = "Events of objects, and messages that were given up"),
        (name = "journal", description = "Errors worth a look, and who did what"),
    ),
    paths(
        users::list, users::create, users::show, users::set_enabled, users::delete,
        keys::list, keys::create, keys::show, keys::delete, keys::set_enabled, keys::rotate,
        buckets::list, buckets::create, buckets::show, buckets::delete,
        buckets::set_storage_class,
        objects::stat, chunks::owner, chunks::references,
        tiers::list, tiers::show, tiers::add, tiers::change, tiers::removal::remove, tiers::check, tiers::status,
        tiers::retry, tiers::verify::verify, tiers::moves::list, tiers::moves::request,
        status::status, status::run_cleanup, status::start_scrub,
        cluster::status::status, cluster::join::join_token,
        nodes::list, nodes::drain, nodes::undrain, nodes::drain_status, nodes::remove,
        layout::show, layout::stage, layout::diff, layout::apply, layout::revert,
        shards::list, shards::show,
        repair::status, repair::start, repair::pause, repair::resume,
        events::lag, events::tail, events::replay,
        journal::errors, journal::audit,
        journal::dead_list, journal::dead_show, journal::dead_requeue, journal::dead_discard,
        openapi,
        health::live, health::ready, health::maintenance, health::metrics,
    ),
)]
struct AdminApi;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token in the node's token file (admin.token in its data directory)"))
            .build();
        document.components.get_or_insert_default().add_security_scheme("admin_token", SecurityScheme::Http(scheme));
    }
}

/// The whole description.
pub fn document() -> Document {
    AdminApi::openapi()
}

/// This description.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "node",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value))
)]
pub(super) async fn openapi() -> Json<Document> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Write it anew with `HOLDFAST_WRITE_OPENAPI=1 cargo test -p holdfast-node --lib openapi`.
    #[test]
    fn the_checked_in_description_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let current = document().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("HOLDFAST_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(checked_in == current, "docs/openapi.json is old: see this test for how it is written");
    }

    #[test]
    fn every_operation_says_what_it_does_and_has_a_name_of_its_own() {
        let json = serde_json::to_value(document()).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for (path, methods) in json["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()), "{method} {path}");
                let name = operation["operationId"].as_str().unwrap().to_owned();
                assert!(names.insert(name.clone()), "{name} twice");
            }
        }
    }
}
