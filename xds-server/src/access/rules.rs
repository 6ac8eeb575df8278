//! What each route of the API needs. Pure.

use config::access::Role;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing: for probes, which carry no credentials, and say no more than that the process lives.
    Open,
    /// A role; of the route's `{service}` where the role is of services.
    Needs(Role),
}

const SPLIT: &str = "/v1/services/{service}/split";
const ENDPOINT: &str = "/v1/services/{service}/versions/{version}/endpoints/{id}";
const HOLD: &str = "/v1/services/{service}/versions/{version}/endpoints/{id}/hold";

/// Methods and routes, as the router writes them. All others need [`Role::Admin`].
const RULES: [(&str, &str, Rule); 17] = [
    ("GET", "/healthz", Rule::Open),
    ("GET", "/readyz", Rule::Open),
    ("GET", "/metrics", Rule::Needs(Role::Read)),
    ("GET", "/v1/openapi.json", Rule::Needs(Role::Read)),
    ("GET", "/v1/services", Rule::Needs(Role::Read)),
    ("GET", "/v1/services/{service}", Rule::Needs(Role::Read)),
    ("GET", "/v1/gateways", Rule::Needs(Role::Read)),
    ("GET", "/v1/routes", Rule::Needs(Role::Read)),
    ("GET", "/v1/proxies", Rule::Needs(Role::Read)),
    ("GET", "/v1/proxies/{node}/resources", Rule::Needs(Role::Read)),
    ("GET", "/v1/xds/resources", Rule::Needs(Role::Read)),
    ("GET", "/v1/load", Rule::Needs(Role::Read)),
    ("GET", "/v1/events", Rule::Needs(Role::Read)),
    ("PUT", SPLIT, Rule::Needs(Role::Shift)),
    ("PUT", ENDPOINT, Rule::Needs(Role::Register)),
    ("DELETE", ENDPOINT, Rule::Needs(Role::Register)),
    ("POST", HOLD, Rule::Needs(Role::Register)),
];

/// What `method` needs at `route`; `None` is a path that no route has.
pub(crate) fn rule(method: &str, route: Option<&str>) -> Rule {
    // Whoever may read may learn that there is nothing.
    let Some(route) = route else { return Rule::Needs(Role::Read) };
    // The router answers HEAD as GET, without the body (RFC 9110 §9.3.2).
    let method = if method == "HEAD" { "GET" } else { method };
    let found = RULES.iter().find(|(m, r, _)| *m == method && *r == route);
    found.map_or(Rule::Needs(Role::Admin), |(_, _, rule)| *rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_without_a_rule_needs_admin() {
        assert_eq!(rule("GET", Some("/v1/new")), Rule::Needs(Role::Admin));
        assert_eq!(rule("POST", Some("/v1/services")), Rule::Needs(Role::Admin));
        assert_eq!(rule("POST", Some("/v1/apply")), Rule::Needs(Role::Admin));
        assert_eq!(rule("get", Some("/v1/services")), Rule::Needs(Role::Admin), "methods are case-sensitive");
        assert_eq!(rule("HEAD", Some("/v1/services")), Rule::Needs(Role::Read));
        assert_eq!(rule("GET", None), Rule::Needs(Role::Read));
    }

    #[test]
    fn only_probes_are_open_and_only_reading_needs_no_more_than_read() {
        for (method, route, rule) in &RULES {
            assert_eq!(*rule == Rule::Open, ["/healthz", "/readyz"].contains(route), "{route}");
            assert_eq!(*method == "GET", matches!(rule, Rule::Open | Rule::Needs(Role::Read)), "{route}");
            if let Rule::Needs(role) = rule
                && role.is_of_services()
            {
                assert!(route.contains("/{service}/"), "{route} names no service");
            }
        }
    }
}
