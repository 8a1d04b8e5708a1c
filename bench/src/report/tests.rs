//! Pages as a whole, from made-up records.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::{aggregate::Data, contents, example, html, markdown, twins::Verdict, *};
use crate::net::{
    record::{Conditions, Loss, Record, Recorder, Run, StartRecord, StreamRecord},
    subject::Subject,
};

/// Where to keep the page of the made-up records, for whoever wants to look at it.
const KEEP: &str = "TITAN_BENCH_EXAMPLE";

/// Every tag that is opened is closed, in order, and text holds no stray `<`.
fn assert_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for piece in page.split('<').skip(1) {
        let (inside, _) = piece.split_once('>').unwrap_or_else(|| panic!("no end: {piece:.80}"));
        if let Some(closed) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "before {piece:.80}");
        } else if !inside.starts_with('!') && !inside.ends_with('/') {
            open.push(inside.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn with(change: impl Fn(&mut StartRecord), change_stream: impl Fn(&mut StreamRecord)) -> Data {
    let records = example::records().map(|mut record| {
        match &mut record {
            Record::Start(start) => change(start),
            Record::Stream(stream) => change_stream(stream),
            _ => {}
        }
        record
    });
    Data::new(example::run(), records)
}

#[test]
fn the_page_is_well_formed_and_names_everyone() {
    let contents = contents(example::data());
    let page = html::page(&contents);
    assert_well_formed(&page);
    let names = Subject::TitanQuic..=Subject::Smg;
    assert!(super::palette::ALL.iter().all(|subject| names.contains(subject) && page.contains(subject.label())));
    for piece in ["smg is not installed", "At a glance", "Where Titan loses", "0123456789ab", "--out &lt;results&gt;"] {
        assert!(page.contains(piece), "{piece}");
    }
    assert!(!page.contains("TOKENS LOST") && !page.contains("SELF-TEST FAILED"));
    let elsewhere = ["http://", "https://", "<script", "src=", "@import", "url("];
    assert!(elsewhere.iter().all(|piece| !page.contains(piece)), "the page needs something from elsewhere");
    contents.figures.iter().for_each(|figure| assert_well_formed(&super::svg::file(figure.title, &figure.panels)));
}

#[test]
fn nothing_measured_is_still_a_page() {
    let contents = contents(Data::new(Run { interrupted: true, ..example::run() }, []));
    let page = html::page(&contents);
    assert_well_formed(&page);
    assert!(page.contains("Nothing was measured") && page.contains("interrupted"));
    assert!(markdown::summary(&contents).contains("Nothing was measured"));
}

#[test]
fn every_part_of_a_run_is_still_a_page() {
    let kinds: [fn(&Record) -> bool; 5] = [
        |record| matches!(record, Record::Start(_)),
        |record| matches!(record, Record::Stream(_)),
        |record| matches!(record, Record::Check(_)),
        |record| matches!(record, Record::Cpu(_)),
        |record| matches!(record, Record::Memory(_)),
    ];
    for kind in kinds {
        let contents = contents(Data::new(example::run(), example::records().filter(kind)));
        assert_well_formed(&html::page(&contents));
        markdown::document(&contents, "plots");
    }
}

#[test]
fn a_lost_token_is_shouted() {
    let lossy = |stream: &mut StreamRecord| {
        if stream.subject == Subject::WebSocket && stream.repetition == 3 && stream.failed.is_none() {
            stream.delivery.lost = 1;
        }
    };
    let contents = contents(with(|_| {}, lossy));
    let (page, summary) = (html::page(&contents), markdown::summary(&contents));
    assert!(page.contains("TOKENS LOST OR DUPLICATED: WebSocket"));
    assert!(summary.starts_with("TOKENS LOST OR DUPLICATED: WebSocket"), "{summary:.200}");
}

#[test]
fn tokens_that_a_broken_stream_did_not_deliver_are_failures_and_not_losses() {
    let data = example::data();
    let tokens = data.tokens[&Subject::Tonic];
    assert_eq!((tokens.lost, tokens.duplicated), (0, 0));
    assert!(tokens.cut_off > 0);
    assert!(html::page(&contents(data)).contains("connection reset"));
}

#[test]
fn the_twin_is_told_apart_only_when_it_differs() {
    let alike = contents(example::data());
    assert_eq!(super::twins::verdict(&alike.twins), Verdict::Alike, "{:?}", alike.twins);
    let slower = |start: &mut StartRecord| {
        if start.subject == Subject::TitanQuicAgain {
            start.ttft_ms = start.ttft_ms.map(|ms| ms * 1.1);
        }
    };
    let differ = contents(with(slower, |_| {}));
    assert_eq!(super::twins::verdict(&differ.twins), Verdict::Differ, "{:?}", differ.twins);
    assert!(html::page(&differ).contains("THE SELF-TEST FAILED"));
    let without = example::records().filter(|record| match record {
        Record::Start(start) => start.subject != Subject::TitanQuicAgain,
        _ => false,
    });
    let twins = super::twins::compare(&Data::new(example::run(), without));
    assert_eq!(super::twins::verdict(&twins), Verdict::NotMeasured);
}

#[test]
fn titan_loses_where_another_is_surely_better_and_nowhere_else() {
    let contents = contents(example::data());
    let figures: Vec<&str> = contents.behind.iter().map(|behind| behind.figure).collect();
    // The made-up Titan needs more CPU and memory, and waits for its routing.
    assert!(figures.contains(&"server CPU, s per million tokens"), "{figures:?}");
    assert!(figures.contains(&"RTTs to first token, cold, with routing"), "{figures:?}");
    assert!(!figures.iter().any(|figure| figure.contains("gap") || figure.contains("stalled")), "{figures:?}");
    let ratios: Vec<f64> = contents.behind.iter().map(|behind| behind.ratio()).collect();
    assert!(ratios.windows(2).all(|pair| pair[0] >= pair[1]), "{ratios:?}");
    assert!(ratios.iter().all(|ratio| *ratio > 1.0), "{ratios:?}");
}

#[test]
fn figures_are_the_medians_of_the_records() {
    let starts = [130.0, 110.0, 120.0].into_iter().zip(0..).map(|(ttft_ms, repetition)| {
        Record::Start(StartRecord {
            conditions: Conditions { loss: Loss::Iid { percent: 0.0 }, ..example::base() },
            subject: Subject::TitanQuic,
            repetition,
            state: crate::net::record::StartState::Resumed,
            connect_ms: None,
            ttft_ms: Some(ttft_ms),
            routed_ttft_ms: None,
            failed: None,
        })
    });
    let contents = contents(Data::new(example::run(), starts));
    let column = contents.glance.columns.iter().find(|column| column.name == "RTTs to first token, resumed").unwrap();
    let estimate = column.cells[0].unwrap();
    assert!((estimate.median - 1.2).abs() < 1e-9, "{estimate:?}");
    assert_eq!(super::format::spread_of(&estimate), "min–max 1.10–1.30, n = 3");
    let missing = contents.glance.columns.iter().filter(|column| column.cells[0].is_none()).count();
    assert_eq!(missing, contents.glance.columns.len() - 1);
}

#[test]
fn memory_is_what_connections_add() {
    let data = example::data();
    let setting = data.memory_setting(super::measure::Measure::MemoryIdleServer).unwrap();
    let of = |measure| data.estimate(Subject::TitanQuic, setting, measure).map(|estimate| estimate.median);
    assert_eq!(of(super::measure::Measure::MemoryIdleServer), Some(47_000.0 / 1024.0));
    let smaller = super::aggregate::Setting::Memory { connections: 1_000 };
    let stream = data.estimate(Subject::TitanQuic, &smaller, super::measure::Measure::MemoryStreamServer).unwrap();
    assert_eq!(stream.median, 21_000.0 / 1024.0);
}

#[test]
fn what_net_stored_is_read_and_several_runs_are_put_together() {
    let kept = std::env::var_os(KEEP).map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let dirs = ["one", "two"].map(|name| kept.as_deref().unwrap_or(temporary.path()).join(name));
    let mut recorders = dirs.each_ref().map(|dir| Recorder::create(dir, &example::run()).unwrap());
    for (at, record) in example::records().enumerate() {
        // Memory grows within one run.
        let of = if matches!(record, Record::Memory(_)) { 0 } else { at % 2 };
        recorders[of].put(&record).unwrap();
    }
    // A run that was killed while it wrote.
    let samples = dirs[1].join("samples.jsonl");
    let text = fs::read_to_string(&samples).unwrap();
    fs::write(&samples, format!("{text}{{\"kind\":\"start\",\"cond")).unwrap();

    let summary = write(&dirs, &dirs[0]).unwrap();
    assert_eq!(summary.contents.data.values.len(), example::data().values.len());
    for name in [PAGE, SUMMARY, CSV] {
        assert!(fs::metadata(dirs[0].join(name)).unwrap().len() > 1000, "{name}");
    }
    fs::write(&samples, format!("{text}nonsense\n{text}")).unwrap();
    let error = format!("{:#}", write(&dirs, &dirs[0]).unwrap_err());
    assert!(error.contains("samples.jsonl:"), "{error}");
}

#[test]
fn a_table_is_markdown_and_lines_up() {
    let mut table = Table::new(["wire", "tokens/s"]);
    table.row(["gRPC (TLS)", "9"]);
    table.row(["QUIC", "49999"]);
    let expected = "\
| wire       | tokens/s |
| ---------- | -------: |
| gRPC (TLS) |        9 |
| QUIC       |    49999 |";
    assert_eq!(table.markdown(), expected);
}

#[test]
fn a_report_says_what_where_and_how() {
    let environment = Environment::read();
    let report = Report::new("load", &environment, &"settings", true, &[1, 2]);
    let json = serde_json::to_value(&report).unwrap_or_default();
    assert_eq!((&json["bench"], &json["interrupted"], &json["results"][1]), (&"load".into(), &true.into(), &2.into()));
    assert!(json["environment"]["kernel"].is_string());
}
