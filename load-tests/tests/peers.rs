//! The measurement of proxies side by side works: upstream, load and relay agree about every shape of
//! request.

use std::process::Command;

use serde_json::Value;

fn peers(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_peers")).args(arguments).output().expect("peers can be started")
}

#[test]
fn every_shape_of_request_goes_through_the_relay_without_a_failure() {
    let scenarios = "c1,c32,body-1m,chunked-1m,up-1m,up-chunked-16k,open-5000,new-connections";
    let output = peers(&[
        "--subjects=relay",
        "--rounds=1",
        "--seconds=0.2",
        "--allow-disturbed",
        "--output=json",
        "--scenarios",
        scenarios,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reports = all["reports"].as_array().unwrap();
    assert_eq!(reports.len(), scenarios.split(',').count());
    for report in reports {
        let row = &report["rows"][0];
        assert_eq!(row["failures"], 0, "{report:#}");
        assert!(row["requests_per_second"]["median"].as_f64().unwrap() > 0.0, "{report:#}");
        assert!(row["cpu_us"]["median"].as_f64().unwrap() > 0.0, "{report:#}");
    }
}

#[test]
fn an_unknown_scenario_is_a_usage_error() {
    let output = peers(&["--scenarios=c33"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no scenario `c33`"));
}
