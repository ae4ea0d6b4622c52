//! A plot of four panels as SVG text, with nothing but lines, dots and words. Read [`draw`] first.

use std::fmt::Write;

/// One panel, with the number of sites along its lower edge.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// Whether the upward scale is logarithmic.
    pub(crate) logarithmic: bool,
    pub(crate) series: Vec<Series>,
}

/// One line.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) dashed: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 50.0;
const COLOURS: [&str; 3] = ["#1b6ca8", "#c8553d", "#3a7d44"];

/// The panels, two in a row, and the names of the lines beneath.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let (columns, rows) = (2, panels.len().div_ceil(2));
    let legend = panels.first().map_or(0, |p| p.series.len()).div_ceil(3) as f64 * 20.0 + 10.0;
    let (width, height) = (columns as f64 * WIDTH, rows as f64 * HEIGHT + legend);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = ((i % 2) as f64 * WIDTH, (i / 2) as f64 * HEIGHT);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        draw_panel(&mut svg, panel);
        svg.push_str("</g>\n");
    }
    for (i, series) in panels.iter().take(1).flat_map(|p| &p.series).enumerate() {
        let (x, y) =
            (20.0 + (i % 3) as f64 * 240.0, rows as f64 * HEIGHT + (i / 3) as f64 * 20.0 + 12.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{x} {y}h30\" stroke=\"{}\" stroke-width=\"2\"{}/><text x=\"{}\" y=\"{}\">{}</text>",
            COLOURS[i % 3],
            dash(series.dashed),
            x + 36.0,
            y + 4.0,
            series.name
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn dash(dashed: bool) -> &'static str {
    if dashed { " stroke-dasharray=\"5 3\"" } else { "" }
}

fn draw_panel(svg: &mut String, panel: &Panel) {
    let all = || panel.series.iter().flat_map(|s| &s.points);
    let scale = |v: f64| if panel.logarithmic { v.max(1.0).log10() } else { v };
    let x_max = all().map(|p| p.0.log10()).fold(1.0, f64::max);
    let x_min = all().map(|p| p.0.log10()).fold(f64::MAX, f64::min);
    let y_max = all().map(|p| scale(p.1)).fold(0.0, f64::max).ceil().max(1.0);
    let x =
        |v: f64| MARGIN + (v.log10() - x_min) / (x_max - x_min).max(0.1) * (WIDTH - MARGIN - 15.0);
    let y = |v: f64| HEIGHT - 35.0 - scale(v) / y_max * (HEIGHT - 70.0);
    let _ =
        writeln!(svg, "<text x=\"{MARGIN}\" y=\"20\" font-weight=\"bold\">{}</text>", panel.title);
    for step in 0..=(y_max as u32) {
        let value = if panel.logarithmic { 10f64.powi(step as i32) } else { f64::from(step) };
        let at = y(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{MARGIN} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - 15.0,
            MARGIN - 5.0,
            at + 4.0
        );
    }
    for (sites, _) in panel.series.first().map_or(&[][..], |s| &s.points) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{sites}</text>",
            x(*sites),
            HEIGHT - 18.0
        );
    }
    for (i, series) in panel.series.iter().enumerate() {
        let colour = COLOURS[i % 3];
        let line: Vec<String> =
            series.points.iter().map(|(a, b)| format!("{:.1} {:.1}", x(*a), y(*b))).collect();
        let _ = writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
            line.join("L"),
            dash(series.dashed)
        );
        for (a, b) in &series.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{colour}\"/>",
                x(*a),
                y(*b)
            );
        }
    }
}
