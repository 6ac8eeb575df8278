//! What load reports carry beyond the standard (`envoy/service/load_stats/v3/lrs.proto`), for a sum
//! that stays exact over lost connections: reports are numbered, and each is acknowledged.
//!
//! LRS has no acknowledgement, so a client whose stream breaks cannot know whether its last report
//! arrived. A client of ours therefore puts a [`Mark`] into the metadata of its node, in every request,
//! and sends the next report only when the one before was acknowledged; after a lost stream it repeats
//! that one with its number, and a server that has it already does not count it again.
//!
//! A server that takes part says so with the header [`NUMBERED`] of its answer, and answers each
//! numbered report with a `LoadStatsResponse`. Others ignore the metadata and do not send the header.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{self, Struct, Value, value::Kind},
};

/// The client feature of those who report all their clusters when asked to (lrs.proto,
/// `send_all_clusters`).
pub const SENDS_ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";
/// The header of the answer of a server that acknowledges numbered reports.
pub const NUMBERED: &str = "x-sluicegate-numbered-reports";

const METADATA: &str = "sluicegate.load_report";
/// The longest name of a boot, in bytes.
const MAX_BOOT: usize = 64;
/// The largest number that a JSON number, which is what metadata holds, can say exactly.
const MAX_SEQUENCE: u64 = 1 << 53;

/// The longest interval between reports that is believed; a longer one counts as this.
pub const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// The shortest: a rate over less says nothing.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// An interval of reports, at most [`MAX_INTERVAL`].
pub fn encode_interval(interval: Duration) -> protobuf::Duration {
    super::encode_duration(interval.min(MAX_INTERVAL))
}

/// An interval that a rate can be taken over. Clocks jump, and peers may be wrong: one below 1 ms is
/// none, one of days counts as [`MAX_INTERVAL`].
pub fn decode_interval(interval: &protobuf::Duration) -> Option<Duration> {
    let interval = super::decode_duration("load_report_interval", *interval).ok()?;
    (interval >= MIN_INTERVAL).then(|| interval.min(MAX_INTERVAL))
}

/// Which report a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Unique to one run of the client. 1 to 64 bytes.
    pub boot: String,
    /// Rises by one with each report of the run, from 1. 0 is the first request of a stream, which
    /// reports nothing. At most 2⁵³.
    pub sequence: u64,
    /// Whether the next request goes on with what this one reports.
    pub more: bool,
}

impl Mark {
    /// The metadata of a node that says so.
    pub fn encode(&self) -> Struct {
        let kinds = [
            ("boot", Kind::StringValue(self.boot.clone())),
            ("sequence", Kind::NumberValue(self.sequence as f64)),
            ("more", Kind::BoolValue(self.more)),
        ];
        let fields = kinds.map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
        let mark = Kind::StructValue(Struct { fields: HashMap::from(fields) });
        Struct { fields: HashMap::from([(METADATA.to_owned(), Value { kind: Some(mark) })]) }
    }

    /// The mark of a node; `None` without a valid one.
    pub fn decode(node: &Node) -> Option<Self> {
        let Kind::StructValue(mark) = node.metadata.as_ref()?.fields.get(METADATA)?.kind.as_ref()? else {
            return None;
        };
        let kind = |name: &str| mark.fields.get(name)?.kind.as_ref();
        let (Some(Kind::StringValue(boot)), Some(Kind::NumberValue(sequence))) =
            (kind("boot"), kind("sequence"))
        else {
            return None;
        };
        // A cast of what is not a number in range would make another one of it.
        let is_whole = (0.0..=MAX_SEQUENCE as f64).contains(sequence) && sequence.fract() == 0.0;
        if !(1..=MAX_BOOT).contains(&boot.len()) || !is_whole {
            return None;
        }
        let more = matches!(kind("more"), Some(Kind::BoolValue(true)));
        Some(Self { boot: boot.clone(), sequence: *sequence as u64, more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mark: &Mark) -> Node {
        Node { metadata: Some(mark.encode()), ..Node::default() }
    }

    #[test]
    fn a_mark_reads_back_what_it_writes() {
        for (sequence, more) in [(0, false), (7, true), (MAX_SEQUENCE, false)] {
            let mark = Mark { boot: "b1".to_owned(), sequence, more };
            assert_eq!(Mark::decode(&node(&mark)), Some(mark));
        }
    }

    #[test]
    fn an_interval_is_one_a_rate_can_be_taken_over() {
        let read = |seconds, nanos| decode_interval(&protobuf::Duration { seconds, nanos });
        for bad in [(0, 0), (-3, 0), (i64::MIN, i32::MIN), (0, 999_999), (1, -1), (1, i32::MAX)] {
            assert_eq!(read(bad.0, bad.1), None, "{bad:?}");
        }
        assert_eq!(read(0, 250_000_000), Some(Duration::from_millis(250)));
        assert_eq!(read(200_000, 0), Some(MAX_INTERVAL));
        assert_eq!(read(i64::MAX, 999_999_999), Some(MAX_INTERVAL));
        let quarter = Duration::from_millis(250);
        assert_eq!(decode_interval(&encode_interval(quarter)), Some(quarter));
    }

    #[test]
    fn a_mark_that_makes_no_sense_is_none() {
        assert_eq!(Mark::decode(&Node::default()), None);
        for boot in [String::new(), "b".repeat(MAX_BOOT + 1)] {
            assert_eq!(Mark::decode(&node(&Mark { boot, sequence: 1, more: false })), None);
        }
        for number in [f64::NAN, f64::INFINITY, -1.0, 0.5, 1e300] {
            let mut node = node(&Mark { boot: "b".to_owned(), sequence: 1, more: false });
            let mark = node.metadata.as_mut().unwrap().fields.get_mut(METADATA).unwrap();
            let Some(Kind::StructValue(mark)) = &mut mark.kind else { panic!() };
            mark.fields.get_mut("sequence").unwrap().kind = Some(Kind::NumberValue(number));
            assert_eq!(Mark::decode(&node), None, "{number}");
        }
    }
}
