//! Tables of what the plots leave out: one dimension of the network or the load at a time.

use super::{
    aggregate::Data,
    format::{self, median_of, plain},
    measure::Measure,
};
use crate::net::{
    record::{Conditions, Event, Loss},
    subject::Subject,
};

/// Subjects by values of one dimension.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub(super) title: String,
    /// What the cells are, and what stands still.
    pub(super) caption: String,
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<(Subject, Vec<Cell>)>,
}

#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) main: String,
    /// Beside or below it, smaller; may be empty.
    pub(super) minor: String,
}

#[derive(Clone, Copy, Debug)]
enum Dimension {
    Rate,
    TokenRate,
    Streams,
    Bursts,
    CongestionControl,
    Loss,
}

pub(super) fn grids(data: &Data) -> Vec<Grid> {
    let gaps =
        [Dimension::Rate, Dimension::TokenRate, Dimension::Streams, Dimension::Bursts, Dimension::CongestionControl];
    let gaps = gaps.into_iter().flat_map(|dimension| along(data, dimension, Measure::GapP99, Some(Measure::Stall)));
    let starts = [
        (Dimension::Loss, Measure::TtftCold),
        (Dimension::Loss, Measure::TtftWarm),
        (Dimension::Rate, Measure::TtftCold),
    ];
    let starts = starts.into_iter().flat_map(|(dimension, measure)| along(data, dimension, measure, None));
    gaps.chain(starts).collect()
}

/// Tables along `dimension`, one for each loss with which it was varied. Where the other dimensions never have their usual values,
/// the one with most columns.
fn along(data: &Data, dimension: Dimension, main: Measure, minor: Option<Measure>) -> Vec<Grid> {
    let mut groups: Vec<(Conditions, Vec<&Conditions>)> = Vec::new();
    for network in data.networks(main).into_iter().filter(|network| network.event == Event::None) {
        let Some(rest) = dimension.rest(network) else { continue };
        match groups.iter_mut().find(|group| group.0 == rest) {
            Some(group) => group.1.push(network),
            None => groups.push((rest, vec![network])),
        }
    }
    groups.retain(|(_, networks)| networks.len() > 1);
    let usual = data.reference(main);
    let is_usual = |rest: &Conditions| {
        dimension.rest(&Conditions { loss: rest.loss, ..usual.clone() }).is_some_and(|usual| usual == *rest)
    };
    if groups.iter().any(|(rest, _)| is_usual(rest)) {
        groups.retain(|(rest, _)| is_usual(rest));
    } else {
        groups.sort_by_key(|(_, networks)| std::cmp::Reverse(networks.len()));
        groups.truncate(1);
    }
    groups.into_iter().map(|(_, networks)| grid(data, dimension, networks, main, minor)).collect()
}

fn grid(
    data: &Data,
    dimension: Dimension,
    mut networks: Vec<&Conditions>,
    main: Measure,
    minor: Option<Measure>,
) -> Grid {
    networks.sort_by(|left, right| dimension.order(left).total_cmp(&dimension.order(right)));
    let cell = |subject, network: &Conditions| {
        let main = data.over_network(subject, network, main);
        let minor = minor.and_then(|minor| data.over_network(subject, network, minor));
        Cell {
            main: median_of(main.as_ref()),
            minor: minor.map(|minor| format!("{} %", format::number(minor.median))).unwrap_or_default(),
        }
    };
    let rows = data
        .subjects()
        .into_iter()
        .map(|subject| (subject, networks.iter().map(|network| cell(subject, network)).collect()));
    let what = if minor.is_some() { "p99 gap, ms, and share of time stalled" } else { main.title() };
    Grid {
        title: format!("{}: {what}", dimension.title()),
        caption: networks.first().map(|network| dimension.standing(network)).unwrap_or_default(),
        columns: networks.iter().map(|network| dimension.value(network)).collect(),
        rows: rows.collect(),
    }
}

impl Dimension {
    fn title(self) -> &'static str {
        match self {
            Self::Rate => "Rate of the link",
            Self::TokenRate => "Rate of the tokens",
            Self::Streams => "Streams of one client",
            Self::Bursts => "Loss in bursts",
            Self::CongestionControl => "TCP's congestion control",
            Self::Loss => "Loss",
        }
    }

    /// The network with this dimension out of the way. `None`: the network does not lie along it.
    fn rest(self, network: &Conditions) -> Option<Conditions> {
        let mut rest = network.clone();
        match self {
            Self::Rate => rest.rate_mbit = None,
            Self::TokenRate => rest.token_rate = 0.0,
            Self::Streams => rest.streams = 0,
            Self::CongestionControl => rest.congestion_control.clear(),
            Self::Bursts | Self::Loss => {
                let bursts = matches!(network.loss, Loss::Burst { .. });
                if !matches!(network.loss, Loss::None) && bursts != matches!(self, Self::Bursts) {
                    return None;
                }
                rest.loss = Loss::None;
            }
        }
        Some(rest)
    }

    fn order(self, network: &Conditions) -> f64 {
        match self {
            Self::Rate => network.rate_mbit.unwrap_or(f64::INFINITY),
            Self::TokenRate => network.token_rate,
            Self::Streams => f64::from(network.streams),
            // The usual one first.
            Self::CongestionControl => f64::from(u8::from(network.congestion_control != "cubic")),
            Self::Bursts | Self::Loss => match network.loss {
                Loss::None => 0.0,
                Loss::Iid { percent } | Loss::Burst { percent, .. } => percent,
            },
        }
    }

    /// Over a column.
    fn value(self, network: &Conditions) -> String {
        match self {
            Self::Rate => {
                network.rate_mbit.map_or_else(|| "unlimited".to_owned(), |rate| format!("{} Mbit/s", plain(rate)))
            }
            Self::TokenRate => format!("{} tokens/s", plain(network.token_rate)),
            Self::Streams if network.streams == 1 => "1 stream".to_owned(),
            Self::Streams => format!("{} streams", network.streams),
            Self::CongestionControl => network.congestion_control.clone(),
            Self::Bursts | Self::Loss => network.loss.to_string(),
        }
    }

    /// What is the same in all columns.
    fn standing(self, network: &Conditions) -> String {
        let text = format::network(network);
        let varied = match self {
            Self::Rate => network.rate_mbit.map(|rate| format!("{} Mbit/s", plain(rate))).unwrap_or_default(),
            Self::CongestionControl => format!("TCP {}", network.congestion_control),
            Self::Bursts | Self::Loss => format::loss(&network.loss),
            Self::TokenRate | Self::Streams => self.value(network),
        };
        let parts: Vec<&str> = text.split(", ").filter(|part| *part != varied).collect();
        let note = match self {
            Self::CongestionControl => ". It is nothing to QUIC, whose figures stand in each column",
            _ => "",
        };
        format!("{}{note}.", parts.join(", "))
    }
}
