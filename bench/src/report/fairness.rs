//! What token streams leave of a link to a flow that sends all it can.

use super::{aggregate::Data, estimate::Estimate, format::plain};
use crate::net::subject::Subject;

/// One row: the flow alone, or beside the streams of a subject.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Share {
    pub(super) beside: Option<Subject>,
    pub(super) bulk_mbit: Estimate,
    pub(super) gap_p99_ms: Option<Estimate>,
}

impl Share {
    pub(super) fn name(&self) -> String {
        self.beside.map_or_else(|| "alone".to_owned(), |subject| format!("beside {}", subject.label()))
    }
}

pub(super) const HEAD: [&str; 3] = ["TCP bulk flow", "its Mbit/s", "p99 gap of the streams, ms"];

/// The flow alone first.
pub(super) fn shares(data: &Data) -> Vec<Share> {
    let mut beside: Vec<Option<Subject>> = data.fairness.iter().map(|record| record.beside).collect();
    beside.sort_unstable();
    beside.dedup();
    let share = |beside: Option<Subject>| {
        let records = || data.fairness.iter().filter(move |record| record.beside == beside);
        Some(Share {
            beside,
            bulk_mbit: Estimate::of(&records().map(|record| record.bulk_mbit).collect::<Vec<_>>())?,
            gap_p99_ms: Estimate::of(&records().filter_map(|record| record.gap_p99_ms).collect::<Vec<_>>()),
        })
    };
    beside.into_iter().filter_map(share).collect()
}

/// Over what it was measured.
pub(super) fn caption(data: &Data) -> String {
    data.fairness.first().map_or_else(String::new, |record| {
        format!(
            "One TCP flow that sends all it can over a link of {} Mbit/s with a round trip of {} ms, and {} token streams of one client \
             beside it, over the same link. Of the flow more is better.",
            plain(record.rate_mbit),
            plain(record.rtt_ms),
            record.streams
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        net::record::{FairnessRecord, Record},
        report::{contents, example, html, markdown},
    };

    #[test]
    fn the_flow_is_shown_alone_and_beside_each() {
        let record = |beside, repetition, bulk_mbit, gap_p99_ms| {
            let (rate_mbit, rtt_ms, streams) = (10.0, 50.0, 20);
            Record::Fairness(FairnessRecord { beside, repetition, rate_mbit, rtt_ms, streams, bulk_mbit, gap_p99_ms })
        };
        let records = [
            record(Some(Subject::TitanQuic), 0, 7.5, Some(25.0)),
            record(None, 0, 9.0, None),
            record(None, 1, 9.4, None),
        ];
        let contents = contents(Data::new(example::run(), records));
        let shares = shares(&contents.data);
        let names: Vec<String> = shares.iter().map(Share::name).collect();
        assert_eq!(names, ["alone", "beside Titan QUIC"]);
        assert!((shares[0].bulk_mbit.median - 9.2).abs() < 1e-9 && shares[0].gap_p99_ms.is_none());
        for page in [html::page(&contents), markdown::document(&contents, "plots")] {
            assert!(page.contains("beside Titan QUIC") && page.contains("20 token streams"), "{page}");
        }
    }
}
