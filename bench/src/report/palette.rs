//! Colours: those of Okabe and Ito, which people with any kind of colour vision tell apart, darker or lighter where text needs it.
//! Titan is warm and bold, gRPC blue, server-sent events green, relays grey.

use std::fmt::Write as _;

use crate::net::subject::Subject;

/// How a subject is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Its name in style sheets, and in the CSV; as in the samples.
    pub(super) class: &'static str,
    /// On white, and on the dark page.
    pub(super) colours: (&'static str, &'static str),
    /// Dashes and spaces; tells apart what has nearly one colour.
    pub(super) dashes: &'static str,
    pub(super) bold: bool,
}

pub(super) fn look(subject: Subject) -> Look {
    let (class, colours, dashes) = match subject {
        Subject::TitanQuic => ("titan-quic", ("#d04f00", "#ff8a3d"), ""),
        Subject::TitanQuicAgain => ("titan-quic-again", ("#d04f00", "#ff8a3d"), "2 3"),
        Subject::TitanQuicPlain => ("titan-quic-plain", ("#b5651d", "#e0a070"), "4 2"),
        Subject::TitanAuto => ("titan-auto", ("#d04f00", "#ff8a3d"), "9 2"),
        Subject::TitanGrpc => ("titan-grpc", ("#9a6b00", "#e6b340"), "7 3"),
        Subject::OpenaiProxy => ("openai-proxy", ("#a83232", "#ff9d9d"), "6 2"),
        Subject::OpenaiRedirected => ("openai-redirected", ("#8a4b6b", "#dba3c0"), "2 2"),
        Subject::Tonic => ("tonic", ("#0063a6", "#5aa9e6"), ""),
        Subject::TonicH3 => ("tonic-h3", ("#1f86c7", "#8cc8f2"), "5 3"),
        Subject::SseHttp1 => ("sse-http1", ("#00795a", "#2fbf94"), ""),
        Subject::SseHttp2 => ("sse-http2", ("#2f8f6f", "#7fd9bb"), "5 3"),
        Subject::WebSocket => ("web-socket", ("#a8487e", "#e79bc4"), ""),
        Subject::Nginx => ("nginx", ("#5f6368", "#b4b8be"), "4 3"),
        Subject::Smg => ("smg", ("#5f6368", "#b4b8be"), "1 3"),
    };
    Look { class, colours, dashes, bold: subject == Subject::TitanQuic }
}

pub(super) const ALL: [Subject; 14] = [
    Subject::TitanQuic,
    Subject::TitanQuicAgain,
    Subject::TitanQuicPlain,
    Subject::TitanAuto,
    Subject::TitanGrpc,
    Subject::OpenaiProxy,
    Subject::OpenaiRedirected,
    Subject::Tonic,
    Subject::TonicH3,
    Subject::SseHttp1,
    Subject::SseHttp2,
    Subject::WebSocket,
    Subject::Nginx,
    Subject::Smg,
];

/// What charts are drawn with: ink, faint ink, lines of the grid, background, heat, text on heat; light and dark.
const CHART: [(&str, &str, &str); 6] = [
    ("ink", "#1b1f24", "#e8eaed"),
    ("faint", "#59616b", "#a3abb5"),
    ("rule", "#dfe3e8", "#343a42"),
    ("paper", "#ffffff", "#15181c"),
    ("heat", "#b23c00", "#ff8a3d"),
    ("on-heat", "#ffffff", "#15181c"),
];

/// Style of charts on the page, where both themes are.
pub(super) fn page_style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (name, on_light, on_dark) in CHART {
        let _ = write!(light, "--{name}:{on_light};");
        let _ = write!(dark, "--{name}:{on_dark};");
    }
    let mut classes = String::new();
    for subject in ALL {
        let Look { class, colours: (on_light, on_dark), .. } = look(subject);
        let _ = write!(light, "--{class}:{on_light};");
        let _ = write!(dark, "--{class}:{on_dark};");
        let _ = writeln!(classes, ".{class}{{color:var(--{class})}}");
    }
    format!(
        ":root{{{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n{classes}{}",
        chart_style(|name| format!("var(--{name})"))
    )
}

/// Style of a chart in a file of its own, which is light wherever it is shown.
pub(super) fn file_style() -> String {
    let light = |name: &str| {
        CHART.iter().find(|colour| colour.0 == name).map_or_else(String::new, |colour| colour.1.to_owned())
    };
    let mut style = chart_style(light);
    for subject in ALL {
        let look = look(subject);
        let _ = writeln!(style, ".{}{{color:{}}}", look.class, look.colours.0);
    }
    style
}

fn chart_style(colour: impl Fn(&str) -> String) -> String {
    let (ink, faint, rule, heat, on_heat) =
        (colour("ink"), colour("faint"), colour("rule"), colour("heat"), colour("on-heat"));
    format!(
        "svg text{{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:{ink}}}\n\
         svg .t{{font-weight:600}}svg .a{{fill:{faint};font-size:12px}}svg .g{{stroke:{rule};stroke-width:1}}\n\
         svg .l{{fill:none;stroke:currentColor;stroke-width:1.6;stroke-linejoin:round}}svg .b{{stroke-width:3.4}}\n\
         svg .w{{stroke:currentColor;stroke-width:1;opacity:.55}}svg .d{{fill:currentColor}}svg .n{{fill:currentColor}}\n\
         svg .n.s{{font-weight:700}}svg .h{{fill:{heat}}}svg .o{{fill:{on_heat}}}svg .e{{stroke:{rule};fill:none}}\n"
    )
}
