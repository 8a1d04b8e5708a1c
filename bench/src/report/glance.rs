//! The figures that answer at a glance, and where another subject's are better than Titan's.

use super::{
    aggregate::{Data, Setting},
    estimate::{Estimate, Spread},
    format,
    measure::Measure,
};
use crate::net::{
    record::{Conditions, Loss},
    subject::Subject,
};

/// The first table.
#[derive(Debug)]
pub(super) struct Glance {
    pub(super) subjects: Vec<Subject>,
    pub(super) columns: Vec<Column>,
    /// What the columns were measured over, in words.
    pub(super) networks: String,
    /// The same of CPU and memory.
    pub(super) costs: String,
}

/// One of its figures, for every subject.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) group: &'static str,
    pub(super) title: &'static str,
    /// The group, the title and the unit, for where a column stands alone.
    pub(super) name: &'static str,
    /// The same in few letters, for a terminal.
    pub(super) short: &'static str,
    /// In the order of the subjects.
    pub(super) cells: Vec<Option<Estimate>>,
    /// The same where a subject that has no such figure is to be compared by another one: who has no routing to wait for is as
    /// fast with it as without.
    pub(super) compared: Vec<Option<Estimate>>,
}

const FIRST_TOKEN: &str = "RTTs to first token";
const WITH_ROUTING: &str = "cold, with routing";
const GAP: &str = "p99 gap, token intervals";
const CPU: &str = "CPU s per million tokens";

/// Group, title, name and short name of each column.
const COLUMNS: [[&str; 4]; 12] = [
    [FIRST_TOKEN, "cold", "RTTs to first token, cold", "cold RTTs"],
    [FIRST_TOKEN, WITH_ROUTING, "RTTs to first token, cold, with routing", "routed RTTs"],
    [FIRST_TOKEN, "resumed", "RTTs to first token, resumed", "resumed RTTs"],
    [FIRST_TOKEN, "warm", "RTTs to first token, warm", "warm RTTs"],
    [GAP, "1 % loss", "p99 gap at 1 % loss, token intervals", "p99 gap at 1 %"],
    [GAP, "5 % loss", "p99 gap at 5 % loss, token intervals", "p99 gap at 5 %"],
    ["stalled, %", "5 % loss", "stalled at 5 % loss, % of time", "% stalled at 5 %"],
    [CPU, "server", "server CPU, s per million tokens", "server CPU s/M"],
    [CPU, "client", "client CPU, s per million tokens", "client CPU s/M"],
    ["KiB per idle connection", "server", "server memory, KiB per idle connection", "server KiB/idle"],
    ["per token", "bytes", "bytes per token", "bytes/token"],
    ["per token", "packets", "packets per token", "packets/token"],
];

pub(super) fn glance(data: &Data) -> Glance {
    let subjects = data.subjects();
    let starts = data.reference(Measure::TtftCold);
    let streams = data.reference(Measure::GapP99);
    let per = |value: f64| if value > 0.0 { Some(1.0 / value) } else { None };
    let lossy = |percent| Conditions { loss: Loss::Iid { percent }, ..streams.clone() };
    let over = |network: &Conditions, measure, factor: Option<f64>| -> Vec<Option<Estimate>> {
        let cell = |subject: &Subject| Some(data.over_network(*subject, network, measure)?.times(factor?));
        subjects.iter().map(cell).collect()
    };
    let in_setting = |setting: Option<&Setting>, measure| -> Vec<Option<Estimate>> {
        subjects.iter().map(|subject| data.estimate(*subject, setting?, measure)).collect()
    };
    let (rtt, interval) = (per(starts.rtt_ms), per(1000.0 / streams.token_rate));
    let (cpu, memory) = (data.cpu_setting(), data.memory_setting(Measure::MemoryIdleServer));
    let cold = over(&starts, Measure::TtftCold, rtt);
    let cells = [
        cold.clone(),
        over(&starts, Measure::TtftRouted, rtt),
        over(&starts, Measure::TtftResumed, rtt),
        over(&starts, Measure::TtftWarm, rtt),
        over(&lossy(1.0), Measure::GapP99, interval),
        over(&lossy(5.0), Measure::GapP99, interval),
        over(&lossy(5.0), Measure::Stall, Some(1.0)),
        in_setting(cpu, Measure::CpuServer),
        in_setting(cpu, Measure::CpuClient),
        in_setting(memory, Measure::MemoryIdleServer),
        over(&streams, Measure::BytesPerToken, Some(1.0)),
        over(&streams, Measure::PacketsPerToken, Some(1.0)),
    ];
    let column = |([group, title, name, short], cells): ([&'static str; 4], Vec<Option<Estimate>>)| {
        let compared = match title {
            WITH_ROUTING => cells.iter().zip(&cold).map(|(routed, cold)| routed.or(*cold)).collect(),
            _ => cells.clone(),
        };
        Column { group, title, name, short, cells, compared }
    };
    let columns = COLUMNS.into_iter().zip(cells).map(column).collect();
    let interval_ms = format::number(1000.0 / streams.token_rate);
    let with_loss =
        format!("the figures with loss at that loss in each direction; one token interval is {interval_ms} ms");
    let (starts, streams) = (format::network(&starts), format::network(&streams));
    let networks = if starts == streams {
        format!("Network: {streams} ({with_loss}).")
    } else {
        format!("First token: {starts}. Gaps, stalls, bytes and packets: {streams} ({with_loss}).")
    };
    let mut costs: Vec<String> = cpu.map(|cpu| format!("CPU: {}.", cpu.describe())).into_iter().collect();
    costs.extend(memory.map(|memory| format!("Memory: {}.", memory.describe())));
    Glance { subjects, columns, networks, costs: costs.join(" ") }
}

/// One figure in which another subject is better than Titan over QUIC.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Behind {
    pub(super) figure: &'static str,
    pub(super) ours: Estimate,
    /// The best of them first.
    pub(super) better: Vec<(Subject, Estimate)>,
}

impl Behind {
    /// At least six repetitions on both sides: the 95 % intervals are apart, not only what few measurements spanned.
    pub(super) fn is_sure(&self) -> bool {
        self.ours.spread == Spread::Interval && self.better.iter().any(|(_, theirs)| theirs.spread == Spread::Interval)
    }

    /// How many times as much Titan needs as the best.
    pub(super) fn ratio(&self) -> f64 {
        self.better.first().map_or(f64::NAN, |(_, theirs)| self.ours.median / theirs.median)
    }
}

/// Every figure in which another subject is better than Titan over QUIC, their intervals apart; the worst first.
pub(super) fn behind(glance: &Glance) -> Vec<Behind> {
    let Some(titan) = glance.subjects.iter().position(|subject| *subject == Subject::TitanQuic) else {
        return Vec::new();
    };
    let mut all: Vec<Behind> = Vec::new();
    for column in &glance.columns {
        let Some(ours) = column.cells.get(titan).copied().flatten() else { continue };
        let theirs =
            glance.subjects.iter().zip(&column.compared).filter(|(subject, _)| **subject != Subject::TitanQuic);
        let mut better: Vec<(Subject, Estimate)> = theirs
            .filter_map(|(subject, theirs)| theirs.filter(|theirs| theirs.is_below(&ours)).map(|it| (*subject, it)))
            .collect();
        better.sort_by(|left, right| left.1.median.total_cmp(&right.1.median));
        if !better.is_empty() {
            all.push(Behind { figure: column.name, ours, better });
        }
    }
    all.sort_by(|left, right| right.ratio().total_cmp(&left.ratio()));
    all
}
