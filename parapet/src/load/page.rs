//! What came of a load as one page of HTML that needs nothing else: no script, no other file.

use std::fmt::{self, Display, Write};

use std::time::Duration;

use hdrhistogram::Histogram;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;

/// What came of a load.
#[derive(Debug, Clone)]
pub struct Results<'a> {
    /// What was counted: `requests`, `frames`.
    pub what: &'a str,
    /// How long.
    pub time: Duration,
    /// What is told apart. Of which there was nothing is left out; two can be told apart by colour.
    pub series: Vec<Series<'a>>,
}

/// What came of one kind of it.
#[derive(Debug, Clone, Copy)]
pub struct Series<'a> {
    /// What it is called.
    pub name: &'a str,
    /// How many there were.
    pub count: u64,
    /// How long each of them took, or some, in nanoseconds.
    pub latency: &'a Histogram<u64>,
    /// How many there were in each slice of the time.
    pub slices: &'a [u64],
}

/// A page about `results`, which came of what `title` and `facts` (name and value) say.
pub fn page(title: &str, facts: &[(&str, String)], results: &Results) -> String {
    // Writing to a String cannot fail.
    let mut page = String::new();
    let _ = write_page(&mut page, title, facts, results);
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
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--faint:#ccc;--first:#1f6fb4;--second:#c8541d}\
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#161616;--faint:#444;--first:#6bb0ea;\
--second:#f0945f}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:760px;\
margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em 1em .15em 0;text-align:right}\
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}\
svg text{font-size:11px;fill:var(--ink)}.axis{stroke:var(--faint)}\
.first{stroke:var(--first);fill:var(--first)}.second{stroke:var(--second);fill:var(--second)}\
polyline{stroke-width:2;fill:none!important}rect{fill-opacity:.55;stroke:none!important}";

fn write_page(
    page: &mut String,
    title: &str,
    facts: &[(&str, String)],
    results: &Results,
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
    let what = Text(results.what);
    write!(page, "</table>\n<h2>All {what}</h2>\n")?;
    table(page, results)?;
    writeln!(page, "<h2>{what} per second, over time</h2>")?;
    over_time(page, results)?;
    page.push_str("<h2>How many took how long</h2>\n");
    latencies(page, results)?;
    page.push_str("</body></html>\n");
    Ok(())
}

/// What there was any of, each with the name of its colour.
fn kinds<'a>(results: &'a Results) -> impl Iterator<Item = (&'static str, &'a Series<'a>)> {
    let colours = ["first", "second"].into_iter().cycle();
    colours
        .zip(&results.series)
        .filter(|(_, series)| series.count > 0)
}

fn table(page: &mut String, results: &Results) -> fmt::Result {
    page.push_str(
        "<table><tr><th></th><th>per second</th><th>mean</th><th>p50</th><th>p99</th>\
         <th>p99.9</th><th>longest</th></tr>",
    );
    let seconds = results.time.as_secs_f64();
    for (
        _,
        Series {
            name,
            count,
            latency,
            ..
        },
    ) in kinds(results)
    {
        let quantile = |q| time(latency.value_at_quantile(q) as f64);
        write!(
            page,
            "<tr><td>{}</td><td>{:.0}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            Text(name),
            *count as f64 / seconds,
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

fn over_time(page: &mut String, results: &Results) -> fmt::Result {
    let slices = results
        .series
        .first()
        .map_or(1, |series| series.slices.len().max(1)) as f64;
    let slice = results.time.as_secs_f64() / slices;
    let most = kinds(results).flat_map(|(_, kind)| kind.slices).max();
    let most = most.copied().unwrap_or(0).max(1) as f64;
    let (top, end) = (
        format!("{:.0}/s", most / slice),
        format!("{:.1} s", results.time.as_secs_f64()),
    );
    frame(page, "how many per second, over time", &top, "0 s", &end)?;
    for (colour, kind) in kinds(results) {
        write!(page, "<polyline class=\"{colour}\" points=\"")?;
        for (number, count) in kind.slices.iter().enumerate() {
            let (x, y) = at((number as f64 + 0.5) / slices, *count as f64 / most);
            write!(page, "{x:.1},{y:.1} ")?;
        }
        page.push_str("\"/>");
    }
    legend(page, results)?;
    page.push_str("</svg>\n");
    Ok(())
}

/// Bars of the histogram, a tenth of a factor of ten wide each.
fn latencies(page: &mut String, results: &Results) -> fmt::Result {
    const STEPS: f64 = 10.0;
    let step = |nanos: u64| (nanos.max(1) as f64).log10() * STEPS;
    let low = kinds(results).map(|(_, kind)| kind.latency.min()).min();
    let high = kinds(results).map(|(_, kind)| kind.latency.max()).max();
    let (Some(low), Some(high)) = (low, high) else {
        return Ok(());
    };
    let first = step(low).floor();
    let count = (step(high).floor() - first + 1.0).max(1.0);
    let bars = |kind: &Series| {
        let mut bars = vec![0u64; count as usize];
        for value in kind.latency.iter_recorded() {
            let bar = (step(value.value_iterated_to()).floor() - first).max(0.0) as usize;
            if let Some(bar) = bars.get_mut(bar) {
                *bar += value.count_since_last_iteration();
            }
        }
        bars
    };
    let all: Vec<_> = kinds(results)
        .map(|(colour, kind)| (colour, bars(kind)))
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
    for (colour, bars) in &all {
        for (number, height) in bars.iter().enumerate().filter(|(_, height)| **height > 0) {
            let (x, y) = at(number as f64 / count, *height as f64 / most);
            let ((end, _), (_, ground)) = (at((number as f64 + 1.0) / count, 0.0), at(0.0, 0.0));
            let (width, tall) = (end - x - 1.0, ground - y);
            write!(
                page,
                "<rect class=\"{colour}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"{tall:.1}\"><title>{} to {}: {height}</title></rect>",
                edge(first + number as f64),
                edge(first + number as f64 + 1.0),
            )?;
        }
    }
    legend(page, results)?;
    page.push_str("</svg>\n");
    Ok(())
}

fn legend(page: &mut String, results: &Results) -> fmt::Result {
    for (number, (colour, Series { name, .. })) in kinds(results).enumerate() {
        let y = 18.0 + 16.0 * number as f64;
        let x = WIDTH - 70.0;
        write!(
            page,
            "<rect class=\"{colour}\" x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\"/>\
             <text x=\"{}\" y=\"{y}\">{}</text>",
            y - 9.0,
            x + 16.0,
            Text(name),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies_of(nanos: &[u64]) -> Histogram<u64> {
        let mut latency = Histogram::new(3).unwrap();
        for &nanos in nanos {
            latency.record(nanos).unwrap();
        }
        latency
    }

    #[test]
    fn a_page_has_a_plot_of_each_kind_and_needs_nothing_else() {
        let (reads, writes) = (latencies_of(&[900, 1_000, 3_000_000]), latencies_of(&[5]));
        let series = |name, latency, count| Series {
            name,
            count,
            latency,
            slices: &[0, 0, 4],
        };
        let mut results = Results {
            what: "requests",
            time: Duration::from_secs(1),
            series: vec![series("reads", &reads, 3), series("writes", &writes, 0)],
        };
        let facts = [("image", "<&\"x\">".to_owned())];
        let page = page("a <load>", &facts, &results);
        assert!(page.contains("&lt;&amp;&quot;x&quot;&gt;"));
        assert!(!page.contains("<load>") && !page.contains("<script"));
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline class=\"first\"").count(), 1);
        assert!(!page.contains("class=\"second\""), "there was none");
        results.series[1].count = 1;
        let both = super::page("both", &[], &results);
        assert_eq!(both.matches("<polyline").count(), 2);
    }

    #[test]
    fn nothing_at_all_makes_a_page_too() {
        let results = Results {
            what: "requests",
            time: Duration::ZERO,
            series: Vec::new(),
        };
        assert!(page("nothing", &[], &results).ends_with("</html>\n"));
    }
}
