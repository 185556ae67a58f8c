//! What came of a load as one page of HTML that needs nothing else: no script, no other file.

use std::fmt::{self, Display, Write};

use super::{Kind, Measured};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;

/// A page about `measured`, which came of what `title` and `facts` (name and value) say.
pub fn page(title: &str, facts: &[(&str, String)], measured: &Measured) -> String {
    // Writing to a String cannot fail.
    let mut page = String::new();
    let _ = write_page(&mut page, title, facts, measured);
    page
}

/// Text in HTML.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--faint:#ccc;--read:#1f6fb4;--write:#c8541d}\
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#161616;--faint:#444;--read:#6bb0ea;\
--write:#f0945f}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:760px;\
margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em 1em .15em 0;text-align:right}\
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}\
svg text{font-size:11px;fill:var(--ink)}.axis{stroke:var(--faint)}\
.read{stroke:var(--read);fill:var(--read)}.write{stroke:var(--write);fill:var(--write)}\
polyline{stroke-width:2;fill:none!important}rect{fill-opacity:.55;stroke:none!important}";

fn write_page(
    page: &mut String,
    title: &str,
    facts: &[(&str, String)],
    measured: &Measured,
) -> fmt::Result {
    let title = Text(title);
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<table>"
    )?;
    for (name, value) in facts {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td></tr>",
            Text(name),
            Text(value)
        )?;
    }
    page.push_str("</table>\n<h2>Requests</h2>\n");
    table(page, measured)?;
    page.push_str("<h2>Requests per second, over time</h2>\n");
    over_time(page, measured)?;
    page.push_str("<h2>How many took how long</h2>\n");
    latencies(page, measured)?;
    page.push_str("</body></html>\n");
    Ok(())
}

/// The kinds that there were any of, with their names.
fn kinds(measured: &Measured) -> impl Iterator<Item = (&'static str, &Kind)> {
    let kinds = [("read", &measured.reads), ("write", &measured.writes)];
    kinds
        .into_iter()
        .filter(|(_, kind)| !kind.latency.is_empty())
}

fn table(page: &mut String, measured: &Measured) -> fmt::Result {
    page.push_str(
        "<table><tr><th></th><th>per second</th><th>mean</th><th>p50</th><th>p99</th>\
         <th>p99.9</th><th>longest</th></tr>",
    );
    for (name, kind) in kinds(measured) {
        let latency = &kind.latency;
        let quantile = |q| time(latency.value_at_quantile(q) as f64);
        write!(
            page,
            "<tr><td>{name}</td><td>{:.0}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            kind.per_second(measured.time),
            time(latency.mean()),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            time(latency.max() as f64),
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

/// Nanoseconds for people.
pub fn time(nanos: f64) -> String {
    match nanos {
        _ if nanos < 1e3 => format!("{nanos:.0} ns"),
        _ if nanos < 1e6 => format!("{:.1} µs", nanos / 1e3),
        _ if nanos < 1e9 => format!("{:.1} ms", nanos / 1e6),
        _ => format!("{:.1} s", nanos / 1e9),
    }
}

/// The frame of a plot: two axes, and what is at their ends.
fn frame(page: &mut String, label: &str, top: &str, from: &str, to: &str) -> fmt::Result {
    let (low, right) = (HEIGHT - BOTTOM, WIDTH - 8.0);
    write!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\
         <path class=\"axis\" fill=\"none\" d=\"M{LEFT} 8V{low}H{right}\"/>\
         <text x=\"{}\" y=\"16\" text-anchor=\"end\">{}</text>\
         <text x=\"{}\" y=\"{low}\" text-anchor=\"end\">0</text>\
         <text x=\"{LEFT}\" y=\"{}\">{}</text>\
         <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        Text(label),
        LEFT - 6.0,
        Text(top),
        LEFT - 6.0,
        HEIGHT - 8.0,
        Text(from),
        HEIGHT - 8.0,
        Text(to),
    )
}

/// Where a share of the plot's width and height is.
fn at(x: f64, y: f64) -> (f64, f64) {
    let (low, right) = (HEIGHT - BOTTOM, WIDTH - 8.0);
    (LEFT + x * (right - LEFT), low - y * (low - 8.0))
}

fn over_time(page: &mut String, measured: &Measured) -> fmt::Result {
    let slices = measured.reads.slices.len().max(1) as f64;
    let slice = measured.time.as_secs_f64() / slices;
    let most = kinds(measured).flat_map(|(_, kind)| &kind.slices).max();
    let most = most.copied().unwrap_or(0).max(1) as f64;
    let (top, end) = (
        format!("{:.0}/s", most / slice),
        format!("{:.1} s", measured.time.as_secs_f64()),
    );
    frame(page, "requests per second over time", &top, "0 s", &end)?;
    for (name, kind) in kinds(measured) {
        write!(page, "<polyline class=\"{name}\" points=\"")?;
        for (number, count) in kind.slices.iter().enumerate() {
            let (x, y) = at((number as f64 + 0.5) / slices, *count as f64 / most);
            write!(page, "{x:.1},{y:.1} ")?;
        }
        page.push_str("\"/>");
    }
    legend(page, measured)?;
    page.push_str("</svg>\n");
    Ok(())
}

/// Bars of the histogram, a tenth of a factor of ten wide each.
fn latencies(page: &mut String, measured: &Measured) -> fmt::Result {
    const STEPS: f64 = 10.0;
    let step = |nanos: u64| (nanos.max(1) as f64).log10() * STEPS;
    let low = kinds(measured).map(|(_, kind)| kind.latency.min()).min();
    let high = kinds(measured).map(|(_, kind)| kind.latency.max()).max();
    let (Some(low), Some(high)) = (low, high) else {
        return Ok(());
    };
    let first = step(low).floor();
    let count = (step(high).floor() - first + 1.0).max(1.0);
    let bars = |kind: &Kind| {
        let mut bars = vec![0u64; count as usize];
        for value in kind.latency.iter_recorded() {
            let bar = (step(value.value_iterated_to()).floor() - first).max(0.0) as usize;
            if let Some(bar) = bars.get_mut(bar) {
                *bar += value.count_since_last_iteration();
            }
        }
        bars
    };
    let all: Vec<_> = kinds(measured)
        .map(|(name, kind)| (name, bars(kind)))
        .collect();
    let most = all.iter().flat_map(|(_, bars)| bars).max();
    let most = most.copied().unwrap_or(0).max(1) as f64;
    let edge = |step: f64| time(10f64.powf(step / STEPS));
    let top = format!("{most:.0}");
    frame(
        page,
        "how many took how long",
        &top,
        &edge(first),
        &edge(first + count),
    )?;
    for (name, bars) in &all {
        for (number, height) in bars.iter().enumerate().filter(|(_, height)| **height > 0) {
            let (x, y) = at(number as f64 / count, *height as f64 / most);
            let ((end, _), (_, ground)) = (at((number as f64 + 1.0) / count, 0.0), at(0.0, 0.0));
            let (width, tall) = (end - x - 1.0, ground - y);
            write!(
                page,
                "<rect class=\"{name}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"{tall:.1}\"><title>{} to {}: {height}</title></rect>",
                edge(first + number as f64),
                edge(first + number as f64 + 1.0),
            )?;
        }
    }
    legend(page, measured)?;
    page.push_str("</svg>\n");
    Ok(())
}

fn legend(page: &mut String, measured: &Measured) -> fmt::Result {
    for (number, (name, _)) in kinds(measured).enumerate() {
        let y = 18.0 + 16.0 * number as f64;
        let x = WIDTH - 70.0;
        write!(
            page,
            "<rect class=\"{name}\" x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\"/>\
             <text x=\"{}\" y=\"{y}\">{name}s</text>",
            y - 9.0,
            x + 16.0,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_has_a_plot_of_each_kind_and_needs_nothing_else() {
        let mut measured = Measured::new(Duration::from_secs(1)).unwrap();
        for nanos in [900, 1_000, 250_000, 3_000_000] {
            measured.reads.latency.record(nanos).unwrap();
        }
        measured.reads.slices[7] = 4;
        let facts = [("image", "<&\"x\">".to_owned())];
        let page = page("a <load>", &facts, &measured);
        assert!(page.contains("&lt;&amp;&quot;x&quot;&gt;"));
        assert!(!page.contains("<load>") && !page.contains("<script"));
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline class=\"read\"").count(), 1);
        assert!(!page.contains("class=\"write\""), "there was none");
        measured.writes.latency.record(5).unwrap();
        let both = super::page("both", &[], &measured);
        assert_eq!(both.matches("<polyline").count(), 2);
    }

    #[test]
    fn nothing_at_all_makes_a_page_too() {
        let measured = Measured::new(Duration::ZERO).unwrap();
        assert!(page("nothing", &[], &measured).ends_with("</html>\n"));
    }
}
