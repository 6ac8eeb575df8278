use serde_json::json;

use super::*;
use crate::testing::{Reply, server};

fn service(weights: &[(&str, u32)]) -> ServiceView {
    let total: u32 = weights.iter().map(|(_, w)| w).sum();
    let versions: Vec<_> = weights
        .iter()
        .map(|(name, weight)| {
            json!({"name": name, "weight": weight, "basis_points": weight * ALL / total, "ready": 1, "endpoints": []})
        })
        .collect();
    let view = json!({"name": "checkout", "protocol": "http", "revision": 1, "versions": versions});
    serde_json::from_value(view).unwrap()
}

fn shift(before: &[(&str, u32)], arguments: &[&str]) -> Result<Vec<u32>, String> {
    let shares = arguments.iter().map(|text| text.parse()).collect::<Result<Vec<Share>, _>>()?;
    let split = Aim::new(&shares)?.from(&service(before))?;
    Ok(split.weights().values().copied().collect())
}

#[test]
fn a_percentage_has_up_to_two_decimals() {
    for (text, points) in
        [("0", 0), ("10", 1_000), ("12.5", 1_250), ("0.01", 1), ("33.33", 3_333), ("100.00", ALL)]
    {
        assert_eq!(basis_points(text), Ok(points), "{text}");
    }
    for bad in ["", ".", "-1", "+1", "100.01", "101", "1.234", "1.", ".5", "1e1", "1_0", " 1", "1000"] {
        assert!(basis_points(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_share_is_a_version_and_a_percentage_or_a_weight() {
    let share = "v2=10%".parse::<Share>().unwrap();
    assert_eq!((share.version.as_str(), share.amount), ("v2", Amount::BasisPoints(1_000)));
    let share = "2026.11.3=3".parse::<Share>().unwrap();
    assert_eq!((share.version.as_str(), share.amount), ("2026.11.3", Amount::Weight(3)));
    for bad in ["v2", "v2=", "=10%", "v2=%", "v2=1.5", "v2=-1", "V2=1", "v2=10 %", "v2=4294967296"] {
        assert!(bad.parse::<Share>().is_err(), "{bad}");
    }
}

#[test]
fn the_others_keep_their_ratio() {
    assert_eq!(shift(&[("v1", 100), ("v2", 0)], &["v2=10%"]), Ok(vec![9_000, 1_000]));
    assert_eq!(shift(&[("v1", 3), ("v2", 1), ("v3", 0)], &["v3=20%"]), Ok(vec![6_000, 2_000, 2_000]));
    assert_eq!(shift(&[("v1", 5), ("v2", 5)], &["v2=100%"]), Ok(vec![0, ALL]));
    assert_eq!(shift(&[("v1", 1), ("v2", 0)], &["v1=0%"]), Ok(vec![0, ALL]));
}

#[test]
fn several_versions_get_exactly_what_they_are_asked_for() {
    let before = &[("v1", 3), ("v2", 1), ("v3", 6), ("v4", 0)];
    assert_eq!(shift(before, &["v3=10%", "v4=50%"]), Ok(vec![3_000, 1_000, 1_000, 5_000]));
    assert_eq!(shift(&[("v1", 1), ("v2", 0)], &["v1=40%", "v2=60%"]), Ok(vec![4_000, 6_000]));
}

#[test]
fn weights_are_taken_as_they_are() {
    assert_eq!(shift(&[("v1", 1), ("v2", 0)], &["v1=9", "v2=1"]), Ok(vec![9, 1]));
}

#[test]
fn what_makes_no_split_is_refused_with_the_reason() {
    let before = &[("v1", 1), ("v2", 0)];
    for (arguments, reason) in [
        (&["v3=10%"][..], "it has v1, v2"),
        (&["v1=60%", "v2=60%"], "more than 100 %"),
        (&["v1=30%", "v2=60%"], "no other version"),
        (&["v1=10%", "v2=1"], "mixed"),
        (&["v1=10%", "v1=20%"], "twice"),
        (&["v1=0"], "add up to 0"),
    ] {
        let error = shift(before, arguments).unwrap_err();
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
}

#[test]
fn the_table_shows_shares_before_and_after() {
    let before = service(&[("v1", 100), ("v2", 0)]);
    let split = Split::new([("v1".parse().unwrap(), 9_000), ("v2".parse().unwrap(), 1_000)].into()).unwrap();
    let answer = WriteAnswer { revision: 5, dry_run: false, changes: Vec::new(), applied: None };
    assert_eq!(
        before_and_after(&before, &split, &answer),
        "VERSION  BEFORE     AFTER  READY\nv1        100 %  →   90 %      1\nv2          0 %  →   10 %      1\nrevision 5\n"
    );
}

#[tokio::test]
async fn a_split_that_changed_meanwhile_is_read_again() {
    let view = || Reply::Whole("200 OK", serde_json::to_string(&service(&[("v1", 1), ("v2", 0)])).unwrap());
    let conflict = r#"{"error":{"code":"conflict","message":"it has changed"}}"#.to_owned();
    let written = r#"{"revision":9,"changes":[]}"#.to_owned();
    let conflict = Reply::Whole("412 Precondition Failed", conflict);
    let replies = vec![view(), conflict, view(), Reply::Whole("200 OK", written)];
    let (client, mut requests) = server(replies).await;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        shift: Shift,
    }
    let line = ["shift", "checkout", "v2=10%", "--wait", "--api", client.base()];
    <Line as clap::Parser>::parse_from(line).shift.run().await.unwrap();

    requests.recv().await.unwrap();
    let refused = requests.recv().await.unwrap();
    requests.recv().await.unwrap();
    let accepted = requests.recv().await.unwrap();
    assert_eq!(refused, accepted);
    assert!(
        accepted.starts_with("PUT /v1/services/checkout/split?wait=applied&timeout=2000ms "),
        "{accepted}"
    );
    assert!(
        accepted.contains("if-match: \"7\"\r\n") && accepted.contains("x-sluicegate-actor: "),
        "{accepted}"
    );
    assert!(accepted.ends_with(r#"{"weights":{"v1":9000,"v2":1000}}"#), "{accepted}");
}
