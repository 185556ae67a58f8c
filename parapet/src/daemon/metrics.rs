//! Metrics for Prometheus, in the text that node_exporter's textfile collector reads, and the file
//! that it reads them from.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::xenstored::Status;

/// A label and its value.
type Label<'a> = (&'a str, String);

/// A metric with all its labels and their values.
struct Metric<'a> {
    name: &'a str,
    help: &'a str,
    kind: MetricType,
    values: Vec<(Vec<Label<'a>>, u64)>,
}

/// What a status says, as text for Prometheus.
pub fn metrics(status: &Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(status.clone()));
    let mut text = String::new();
    text::encode_registry(&mut text, &registry).expect("writing to a String cannot fail");
    text
}

impl Collector for Status {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in all(self) {
            let Metric {
                name,
                help,
                kind,
                values,
            } = metric;
            let name = format!("parapet_xenstored_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, kind)?;
            for (labels, value) in values {
                // A counter, too: the format has its suffix in the name of the metric, where
                // OpenMetrics, which the library has in mind, adds it to those of the values.
                match labels.is_empty() {
                    true => metric.encode_gauge(&value)?,
                    false => metric.encode_family(&labels)?.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

fn all(status: &Status) -> Vec<Metric<'_>> {
    let counter = |name, help, values| Metric {
        name,
        help,
        kind: MetricType::Counter,
        values,
    };
    let gauge = |name, help, values| Metric {
        name,
        help,
        kind: MetricType::Gauge,
        values,
    };
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    // A value for each domain, and, where it is of connections, for the local clients.
    let domains = |of: fn(&super::xenstored::DomainStatus) -> usize| {
        let values = status.domains.iter();
        values
            .map(|it| (vec![("domain", it.domid.to_string())], number(of(it))))
            .collect::<Vec<_>>()
    };
    let clients = |of: fn(&super::xenstored::Clients) -> usize| {
        let local = (vec![("domain", "local".into())], number(of(&status.local)));
        let rings = status.domains.iter();
        let rings = rings.map(|it| (vec![("domain", it.domid.to_string())], number(of(&it.ring))));
        [local].into_iter().chain(rings).collect::<Vec<_>>()
    };
    let requests = status.requests.iter().map(|it| {
        let labels = [
            ("request", it.request.clone()),
            ("outcome", it.outcome.clone()),
        ];
        (Vec::from(labels), it.count)
    });
    let ends = [
        ("committed", status.transactions.committed),
        ("dropped", status.transactions.dropped),
        ("conflicted", status.transactions.conflicted),
    ];
    let ends = ends.map(|(end, count)| (vec![("outcome", end.into())], count));
    let version = vec![("version", status.version.clone())];
    vec![
        gauge("info", "The daemon's version", vec![(version, 1)]),
        counter(
            "requests_total",
            "Requests that were answered, by kind and outcome",
            requests.collect(),
        ),
        counter(
            "transactions_begun_total",
            "Transactions that were begun",
            vec![(vec![], status.transactions.begun)],
        ),
        counter(
            "transactions_ended_total",
            "Transactions that took effect, were given up, or have to be tried again",
            ends.into(),
        ),
        counter(
            "events_lost_total",
            "Events that guests lost because they did not read those before",
            vec![(vec![], status.events_lost)],
        ),
        gauge("connections", "Connections", clients(|it| it.connections)),
        gauge(
            "connections_held",
            "Connections whose requests wait for somebody to read",
            clients(|it| it.held),
        ),
        gauge(
            "unread_events",
            "Events of watches that were not read yet",
            clients(|it| it.unread_events),
        ),
        gauge(
            "unread_bytes",
            "Bytes of events and answers that were not read yet",
            clients(|it| it.unread_bytes),
        ),
        gauge(
            "most_unread_bytes",
            "Bytes that the client furthest behind has not read yet",
            clients(|it| it.most_unread_bytes),
        ),
        gauge("nodes", "Nodes, by owner", domains(|it| it.nodes)),
        gauge("watches", "Watches", domains(|it| it.watches)),
        gauge(
            "transactions",
            "Open transactions",
            domains(|it| it.transactions),
        ),
        gauge(
            "outstanding_requests",
            "Requests that are not done with",
            domains(|it| it.outstanding),
        ),
        gauge(
            "memory_bytes",
            "Bytes that are held for a domain",
            domains(|it| it.memory),
        ),
    ]
}

/// A file with metrics that is written anew every so often, and always whole. It is gone when this
/// is dropped: the metrics of a daemon that has ended are not to stand there as if they were news.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    /// The thread that writes it, and what ends that when it is dropped.
    writer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl MetricsFile {
    /// Writes the file now, and again every `interval` on a thread of its own; `text` is asked
    /// for what to write. That it cannot be written is said in the log, and no reason to stop.
    ///
    /// # Errors
    /// The host's, when there can be no thread.
    pub fn keep(
        path: &Path,
        interval: Duration,
        text: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Self> {
        let mut failing = false;
        let place = path.to_owned();
        let mut write_again = move || {
            let written = write(&place, &text());
            if let (Err(error), false) = (&written, failing) {
                log::warn!("metrics are not written to {}: {error}", place.display());
            }
            failing = written.is_err();
        };
        write_again();
        let mut file = MetricsFile {
            path: path.to_owned(),
            writer: None,
        };
        let (stop, stopped) = mpsc::channel();
        let writer = thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    write_again();
                }
            })?;
        file.writer = Some((stop, writer));
        Ok(file)
    }
}

impl Drop for MetricsFile {
    fn drop(&mut self) {
        if let Some((stop, writer)) = self.writer.take() {
            drop(stop);
            // It has said already why it panicked, if it did.
            let _ = writer.join();
        }
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes a file beside its place, and moves it there: who reads it sees all of it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    // Not a name that the collector reads.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::xenstored::tests::status;

    #[test]
    fn metrics_have_a_type_and_a_line_for_each_value() {
        let text = metrics(&status());
        for line in [
            "# TYPE parapet_xenstored_requests_total counter",
            "parapet_xenstored_requests_total{request=\"get_perms\",outcome=\"ENOENT\"} 2",
            "parapet_xenstored_requests_total{request=\"unknown\",outcome=\"ENOSYS\"} 1",
            "parapet_xenstored_transactions_begun_total 9",
            "parapet_xenstored_transactions_ended_total{outcome=\"conflicted\"} 1",
            "parapet_xenstored_connections{domain=\"local\"} 4",
            "parapet_xenstored_connections{domain=\"7\"} 1",
            "# TYPE parapet_xenstored_nodes gauge",
            "parapet_xenstored_nodes{domain=\"0\"} 100",
            "parapet_xenstored_memory_bytes{domain=\"7\"} 2345",
            "parapet_xenstored_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        // Every value belongs to the metric that was described last.
        let mut described = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => described = rest.split(' ').next().unwrap(),
                None if line.starts_with("# HELP ") => {}
                None => assert_eq!(line.split(['{', ' ']).next(), Some(described)),
            }
        }
    }

    #[test]
    fn the_file_is_always_whole_and_gone_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("parapet.prom");
        let (asked, asks) = mpsc::channel();
        let text = move || {
            // Who does not listen any more has seen enough.
            let _ = asked.send(());
            "a 1\n".repeat(10_000)
        };
        let file = MetricsFile::keep(&path, Duration::from_millis(1), text).unwrap();
        for () in asks.iter().take(20) {
            assert_eq!(fs::read(&path).unwrap().len(), 40_000);
        }
        drop(file);
        assert!(!path.exists());
    }
}
