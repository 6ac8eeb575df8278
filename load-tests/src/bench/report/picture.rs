//! CPU time a request as bars: one group a scenario, one bar a subject, user mode apart from the kernel.

use std::fmt::Write as _;

use super::{Report, Row};
use crate::bench::subject::Kind;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 250.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;
const HEADING: f64 = 34.0;

/// An SVG document.
pub fn picture(reports: &[Report]) -> String {
    let drawn: Vec<&Report> = reports.iter().filter(|report| !report.rows.is_empty()).collect();
    let rows: usize = drawn.iter().map(|report| report.rows.len()).sum();
    let height = 60.0 + drawn.len() as f64 * HEADING + rows as f64 * (BAR + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">CPU time a request (µs, median): \
         user dark, system light; whiskers from min to max</text>\n"
    );
    let mut y = 40.0;
    for report in drawn {
        y += HEADING;
        let heading = format!("{} \u{2013} {}", report.scenario, report.about);
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\" font-weight=\"bold\">{}</text>",
            y - 10.0,
            escaped(&heading)
        );
        let most = report.rows.iter().filter_map(end).fold(0.0, f64::max).max(1e-9);
        for row in &report.rows {
            bar(&mut svg, row, y, (WIDTH - LEFT - RIGHT) / most);
            y += BAR + GAP;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The largest value that is drawn of a row.
fn end(row: &Row) -> Option<f64> {
    row.cpu_us.or(row.idle_bytes).map(|spread| spread.max)
}

fn bar(svg: &mut String, row: &Row, y: f64, scale: f64) {
    let (dark, light) = colours(row.subject);
    let mut name = row.subject.label().to_owned();
    if row.workers > 1 {
        let _ = write!(name, " × {}", row.workers);
    }
    let middle = y + BAR * 0.72;
    let _ =
        writeln!(svg, "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0);
    let Some(spread) = row.cpu_us.or(row.idle_bytes) else { return };
    let user = row.user_us.map_or(spread.median, |user| user.median.min(spread.median));
    let mut rect = |x: f64, width: f64, colour: &str| {
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
        );
    };
    rect(LEFT, user * scale, dark);
    rect(LEFT + user * scale, (spread.median - user) * scale, light);
    let (from, to, at) = (LEFT + spread.min * scale, LEFT + spread.max * scale, y + BAR / 2.0);
    let _ = writeln!(svg, "<path d=\"M{from:.1} {at:.1}H{to:.1}\" stroke=\"#222222\" stroke-width=\"1.2\"/>");
    let ratio = row.to_haproxy.map_or_else(String::new, |ratio| format!(" · {ratio:.2} × HAProxy"));
    let value = match row.idle_bytes {
        Some(bytes) => format!("{:.0} bytes each{ratio}", bytes.median),
        None => format!("{:.1} µs{ratio}", spread.median),
    };
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{middle:.1}\">{value}</text>", to.max(LEFT) + 8.0);
}

fn colours(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Sluicegate => ("#0b6e4f", "#6bbf9f"),
        Kind::Nginx => ("#3d5a80", "#98b4d4"),
        Kind::HaProxy => ("#7b4b94", "#c3a3d3"),
        Kind::Envoy => ("#b5523b", "#e3a593"),
        Kind::Relay => ("#555555", "#bbbbbb"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
