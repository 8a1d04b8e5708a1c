//! Charts as SVG, pure: lines, bars and a heat map. Colours and fonts come from the style sheet of [`super::palette`].

use std::fmt::Write as _;

use super::{
    format::escape,
    palette::{self, Look},
};

/// A drawing without the tag around it.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) body: String,
}

/// One width for all: beside each other on a wide screen, and legible on a phone, where it fills the width.
const WIDTH: f64 = 440.0;

impl Panel {
    /// For a page that has the style. `title` is what a screen reader says.
    pub(super) fn inline(&self, title: &str) -> String {
        let Self { width, height, body } = self;
        let title = escape(title);
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">{body}</svg>")
    }
}

/// A file of its own, on white, the panels in rows.
pub(super) fn file(title: &str, panels: &[Panel]) -> String {
    const TITLE_HEIGHT: f64 = 40.0;
    // As many as are legible beside each other on a page of GitHub.
    const ROW: usize = 3;
    let mut body = String::new();
    let (mut width, mut y) = (0.0_f64, TITLE_HEIGHT);
    for row in panels.chunks(ROW) {
        let mut x = 0.0;
        for panel in row {
            let _ = write!(body, "<g transform=\"translate({x} {y})\">{}</g>", panel.body);
            x += panel.width;
        }
        width = width.max(x);
        y += row.iter().map(|panel| panel.height).fold(0.0, f64::max);
    }
    let (style, title) = (palette::file_style(), escape(title));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {y}\" width=\"{width}\" height=\"{y}\" role=\"img\" \
         aria-label=\"{title}\"><style>{style}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text class=\"t\" x=\"16\" y=\"26\" style=\"font-size:16px\">{title}</text>{body}</svg>\n"
    )
}

/// Values to places.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) title: String,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) logarithmic: bool,
    /// The values are names: between them is nothing.
    pub(super) named: bool,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to at least `high`.
    pub(super) fn linear(title: &str, high: f64) -> Self {
        const TICKS: f64 = 5.0;
        let high = if high > 0.0 { high } else { 1.0 };
        let rough = high / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let count = (high / step - 1e-9).ceil() as u32;
        let ticks = (0..=count).map(|at| f64::from(at) * step);
        Self {
            title: title.to_owned(),
            low: 0.0,
            high: f64::from(count) * step,
            logarithmic: false,
            named: false,
            ticks: ticks.map(|value| (value, tick_label(value))).collect(),
        }
    }

    /// Around `low` to `high`, both positive.
    pub(super) fn logarithmic(title: &str, low: f64, high: f64) -> Self {
        // Where a decade is wide, its parts have ticks too.
        let parts: &[f64] = if high / low < 30.0 { &[1.0, 2.0, 5.0] } else { &[1.0, 3.0] };
        let parts = if high / low > 3000.0 { &[1.0] } else { parts };
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let ticks: Vec<f64> =
            decades.flat_map(|decade| parts.iter().map(move |part| part * 10_f64.powi(decade))).collect();
        let low = ticks.iter().copied().rfind(|tick| *tick <= low * 1.001).unwrap_or(low);
        let high = ticks.iter().copied().find(|tick| *tick >= high * 0.999).unwrap_or(high);
        let high = if high > low { high } else { low * 10.0 };
        let ticks = ticks.into_iter().filter(|tick| (low * 0.999..=high * 1.001).contains(tick));
        Self {
            title: title.to_owned(),
            low,
            high,
            logarithmic: true,
            named: false,
            ticks: ticks.map(|value| (value, tick_label(value))).collect(),
        }
    }

    /// The values stand for names, evenly apart.
    pub(super) fn named(title: &str, names: impl IntoIterator<Item = String>) -> Self {
        let ticks: Vec<_> = names.into_iter().enumerate().map(|(at, name)| (at as f64, name)).collect();
        const ROOM: f64 = 0.3;
        let high = ticks.len() as f64 - 1.0 + ROOM;
        Self { title: title.to_owned(), low: -ROOM, high, logarithmic: false, named: true, ticks }
    }

    /// 0 at the low end, 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }
}

fn tick_label(value: f64) -> String {
    // Sums of steps such as 0.1 are not exact.
    super::format::plain((value * 1e6).round() / 1e6)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The interval, drawn where it is known and wide enough to be seen.
    pub(super) around: Option<(f64, f64)>,
}

#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) look: Look,
    pub(super) label: String,
    pub(super) points: Vec<Point>,
    /// Dots on the points: where there are few, and what is between them was not measured.
    pub(super) dots: bool,
}

/// Where the names of lines stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Where the lines end.
    AtEnds,
    /// Below each other with a piece of the line, in the order given: where lines end at one height.
    Listed,
}

const TOP: f64 = 50.0;
const BOTTOM: f64 = 44.0;
const LEFT: f64 = 52.0;
/// For the names of the lines, and with figures beside them.
const RIGHT: f64 = 134.0;
const RIGHT_LISTED: f64 = 178.0;
/// Between the points of two lines at one place, so that their intervals stand beside each other.
const BESIDE: f64 = 2.4;
const NAME_HEIGHT: f64 = 16.0;

pub(super) fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series], names: Names) -> Panel {
    const HEIGHT: f64 = 330.0;
    let right = WIDTH - if names == Names::Listed { RIGHT_LISTED } else { RIGHT };
    let bottom = HEIGHT - BOTTOM;
    let at_x = |value: f64| LEFT + x.share(value) * (right - LEFT);
    let at_y = |value: f64| bottom - y.share(value) * (bottom - TOP);
    let mut body = format!("<text class=\"t\" x=\"16\" y=\"16\">{}</text>", escape(title));
    for (value, label) in &y.ticks {
        let y = at_y(*value);
        let _ = write!(body, "<path class=\"g\" d=\"M{LEFT} {y:.1}H{right}\"/>");
        let _ = write!(body, "<text class=\"a\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">", LEFT - 7.0, y + 4.0);
        let _ = write!(body, "{}</text>", escape(label));
    }
    for (value, label) in &x.ticks {
        let x = at_x(*value);
        let _ = write!(body, "<path class=\"g\" d=\"M{x:.1} {bottom}v4\"/>");
        let _ = write!(body, "<text class=\"a\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">", bottom + 17.0);
        let _ = write!(body, "{}</text>", escape(label));
    }
    let _ = write!(body, "<text class=\"a\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>", HEIGHT - 8.0, escape(&x.title));
    let _ = write!(body, "<text class=\"a\" x=\"16\" y=\"35\">{}</text>", escape(&y.title));

    // The bold ones last: they lie on top.
    for bold in [false, true] {
        for (at, line) in series.iter().enumerate().filter(|(_, line)| line.look.bold == bold) {
            let aside = if x.named { (at as f64 - (series.len() as f64 - 1.0) / 2.0) * BESIDE } else { 0.0 };
            body.push_str(&one_line(line, |value| at_x(value) + aside, at_y));
        }
    }
    let wanted: Vec<f64> = match names {
        Names::AtEnds => series.iter().map(|line| line.points.last().map_or(bottom, |point| at_y(point.y))).collect(),
        Names::Listed => (0..series.len()).map(|at| TOP + 8.0 + at as f64 * NAME_HEIGHT).collect(),
    };
    for ((line, wanted), placed) in series.iter().zip(&wanted).zip(apart(&wanted, TOP, bottom)) {
        let start = match names {
            Names::AtEnds => line.points.last().map_or(right, |point| at_x(point.x)) + 5.0,
            Names::Listed => right + 8.0,
        };
        let from = if names == Names::AtEnds { *wanted } else { placed };
        let Look { class, dashes, bold, .. } = line.look;
        let (thick, strong) = if bold { (" b", " s") } else { ("", "") };
        if names == Names::Listed {
            let _ = write!(
                body,
                "<path class=\"l{thick} {class}\" stroke-dasharray=\"{dashes}\" d=\"M{start} {placed:.1}h12\"/>"
            );
        } else {
            let _ =
                write!(body, "<path class=\"w {class}\" d=\"M{start:.1} {from:.1}L{:.1} {placed:.1}\"/>", right + 20.0);
        }
        let _ = write!(
            body,
            "<text class=\"n{strong} {class}\" x=\"{:.1}\" y=\"{:.1}\" style=\"font-size:12px\">{}</text>",
            right + 24.0,
            placed + 4.0,
            escape(&line.label)
        );
    }
    Panel { width: WIDTH, height: HEIGHT, body }
}

fn one_line(line: &Series, at_x: impl Fn(f64) -> f64, at_y: impl Fn(f64) -> f64) -> String {
    let Look { class, dashes, bold, .. } = line.look;
    let thick = if bold { " b" } else { "" };
    let mut path = String::new();
    let mut marks = String::new();
    for (at, point) in line.points.iter().enumerate() {
        let (x, y) = (at_x(point.x), at_y(point.y));
        let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" });
        if let Some((low, high)) = point.around.filter(|(low, high)| (at_y(*low) - at_y(*high)).abs() > 3.0) {
            let _ = write!(marks, "<path class=\"w {class}\" d=\"M{x:.1} {:.1}V{:.1}\"/>", at_y(low), at_y(high));
        }
        if line.dots {
            let radius = if bold { 4.2 } else { 2.6 };
            let _ = write!(marks, "<circle class=\"d {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>");
        }
    }
    format!("<path class=\"l{thick} {class}\" stroke-dasharray=\"{dashes}\" d=\"{path}\"/>{marks}")
}

/// The places nearest to those wanted that leave [`NAME_HEIGHT`] between each other and lie within the bounds, where there is room.
fn apart(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|left, right| wanted[*left].total_cmp(&wanted[*right]));
    let mut placed = wanted.to_vec();
    let mut free_from = top;
    for &at in &order {
        placed[at] = placed[at].max(free_from);
        free_from = placed[at] + NAME_HEIGHT;
    }
    let mut free_to = bottom;
    for &at in order.iter().rev() {
        placed[at] = placed[at].min(free_to);
        free_to = placed[at] - NAME_HEIGHT;
    }
    placed
}

/// One row of a bar chart.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) look: Look,
    pub(super) label: String,
    /// One after the other; the second is paler.
    pub(super) parts: Vec<f64>,
    pub(super) around: Option<(f64, f64)>,
    /// At the end of the bar: the figure, or why there is none.
    pub(super) text: String,
}

pub(super) fn bars(title: &str, subtitle: &str, rows: &[Bar]) -> Panel {
    const FROM: f64 = 140.0;
    const ROW: f64 = 27.0;
    const TEXT: f64 = 122.0;
    let longest = |row: &Bar| row.parts.iter().sum::<f64>().max(row.around.map_or(0.0, |around| around.1));
    let most = rows.iter().map(longest).fold(0.0, f64::max);
    let to = |value: f64| if most > 0.0 { value / most * (WIDTH - FROM - TEXT) } else { 0.0 };
    let mut body = format!("<text class=\"t\" x=\"16\" y=\"16\">{}</text>", escape(title));
    let _ = write!(body, "<text class=\"a\" x=\"16\" y=\"33\">{}</text>", escape(subtitle));
    for (at, row) in rows.iter().enumerate() {
        let y = 46.0 + at as f64 * ROW;
        let (class, strong) = (row.look.class, if row.look.bold { " s" } else { "" });
        let middle = y + 14.0;
        let label = escape(&row.label);
        let _ = write!(
            body,
            "<text class=\"n{strong} {class}\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>",
            FROM - 9.0
        );
        let mut x = FROM;
        for (part, value) in row.parts.iter().enumerate() {
            let opacity = match (row.look.bold, part) {
                (true, 0) => "1",
                (false, 0) => ".62",
                (true, _) => ".42",
                (false, _) => ".26",
            };
            let width = to(*value).max(0.0);
            let _ = write!(
                body,
                "<rect class=\"d {class}\" opacity=\"{opacity}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"19\"/>"
            );
            x += width;
        }
        if let Some((low, high)) = row.around.filter(|(low, high)| to(high - low) > 3.0) {
            let (low, high) = (FROM + to(low), FROM + to(high));
            let whisker = y + 9.5;
            let _ =
                write!(body, "<path class=\"w\" style=\"stroke-width:1.6\" d=\"M{low:.1} {whisker:.1}H{high:.1}\"/>");
            x = x.max(high);
        }
        let text = escape(&row.text);
        let _ = write!(body, "<text class=\"a\" x=\"{:.1}\" y=\"{middle:.1}\">{text}</text>", x + 7.0);
    }
    Panel { width: WIDTH, height: 46.0 + rows.len() as f64 * ROW + 12.0, body }
}

/// One row of a heat map: what it is of, and what its cells say; the heat is between 0 and 1.
pub(super) type HeatRow = (Look, String, Vec<Option<(f64, String)>>);

pub(super) fn heat(title: &str, subtitle: &str, columns: &[String], rows: &[HeatRow]) -> Panel {
    const FROM: f64 = 140.0;
    const ROW: f64 = 28.0;
    let step = (WIDTH - FROM - 12.0) / columns.len().max(1) as f64;
    let mut body = format!("<text class=\"t\" x=\"16\" y=\"16\">{}</text>", escape(title));
    let _ = write!(body, "<text class=\"a\" x=\"16\" y=\"33\">{}</text>", escape(subtitle));
    for (at, column) in columns.iter().enumerate() {
        let x = FROM + (at as f64 + 0.5) * step;
        let _ =
            write!(body, "<text class=\"a\" x=\"{x:.1}\" y=\"54\" text-anchor=\"middle\">{}</text>", escape(column));
    }
    for (at, (look, label, cells)) in rows.iter().enumerate() {
        let y = 62.0 + at as f64 * ROW;
        let (class, strong, middle) = (look.class, if look.bold { " s" } else { "" }, y + 17.0);
        let label = escape(label);
        let _ = write!(
            body,
            "<text class=\"n{strong} {class}\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>",
            FROM - 9.0
        );
        for (at, cell) in cells.iter().enumerate() {
            let x = FROM + at as f64 * step;
            let (heat, text) = cell.clone().unwrap_or((0.0, super::format::DASH.to_owned()));
            let ink = if heat > 0.72 { "o" } else { "i" };
            let (width, height, centre) = (step - 2.0, ROW - 2.0, x + step / 2.0 - 1.0);
            let _ = write!(
                body,
                "<rect class=\"e\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\"/>\
                 <rect class=\"h\" opacity=\"{heat:.2}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\"/>\
                 <text class=\"{ink}\" x=\"{centre:.1}\" y=\"{middle:.1}\" text-anchor=\"middle\">{}</text>",
                escape(&text)
            );
        }
    }
    Panel { width: WIDTH, height: 62.0 + rows.len() as f64 * ROW + 12.0, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_values() {
        let axis = Axis::linear("", 7.3);
        assert_eq!((axis.low, axis.high), (0.0, 8.0));
        let labels = |axis: &Axis| axis.ticks.iter().map(|tick| tick.1.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(&axis), "0 2 4 6 8");
        assert_eq!(labels(&Axis::linear("", 0.3)), "0 0.1 0.2 0.3");
        assert_eq!(labels(&Axis::linear("", 0.0)), "0 0.2 0.4 0.6 0.8 1");
        let axis = Axis::logarithmic("", 15.0, 900.0);
        assert_eq!((axis.low, axis.high, labels(&axis).as_str()), (10.0, 1000.0, "10 30 100 300 1,000"));
    }

    #[test]
    fn names_do_not_overlap_and_stay_in_the_chart() {
        let placed = apart(&[100.0, 101.0, 199.0, 200.0, 20.0], 30.0, 200.0);
        let mut sorted = placed.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= NAME_HEIGHT - 1e-9), "{placed:?}");
        assert!(placed.iter().all(|y| (30.0..=200.0).contains(y)), "{placed:?}");
        assert!(placed[0] < placed[1] && placed[2] < placed[3], "the order of the lines is the order of the names");
    }

    #[test]
    fn text_is_escaped() {
        let panel = bars("<a>", "&", &[]);
        assert!(panel.body.contains("&lt;a&gt;") && panel.body.contains("&amp;"), "{}", panel.body);
    }
}
