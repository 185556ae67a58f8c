//! The ready networks, with a stock stack in the guest's place: a network namespace with a TAP
//! device that is laid to the vif by a cable. It takes root, and `ip`, `nft`, `dnsmasq` and
//! `busybox`; without them the tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use parapet::config::{HostConfig, Subnet};
use parapet::network::Networks;
use parapet_hypervisor::host::{Tap, in_network_namespace};
use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_netback::port::cable::Cable;
use parapet_netback::port::tap::Device;
use parapet_netback::port::{Network, Vif};
use parapet_packet::Mac;
use parapet_xen_sys::DomId;

/// A network namespace, for as long as this is there.
struct Namespace {
    file: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Namespace {
    fn new() -> Self {
        let (alive, end) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(PathBuf::from("/proc").join(thread).join("ns/net"))
                .unwrap();
            let _ = end.recv();
        });
        Namespace {
            file: told.recv().unwrap(),
            _alive: alive,
        }
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_namespace(std::fs::File::open(&self.file).unwrap(), work).unwrap()
    }
}

fn run(command: &str) -> Output {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    output
}

fn said(command: &str) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

/// Runs a test in a namespace of its own, which is the host's.
fn apart(test: impl FnOnce(Domain) + Send) {
    let commands = ["ip", "nft", "dnsmasq", "busybox"];
    let there = |command: &&str| Command::new(command).arg("--version").output().is_ok();
    thread::scope(|scope| {
        let worker = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) if commands.iter().all(there) => {
                run("ip link set lo up");
                let config = Config {
                    pcpus: 1,
                    ..Config::default()
                };
                let hypervisor = Hypervisor::new(config).unwrap();
                test(hypervisor.create(DomainConfig::default()).unwrap());
            }
            Ok(()) => eprintln!("skipped: one of {commands:?} is missing"),
            Err(error) => eprintln!("skipped: no network namespace ({error}); run it as root"),
        });
        worker.join().unwrap();
    });
}

/// A stock stack behind a vif, as `eth0`.
struct Guest {
    namespace: Namespace,
    _cable: Cable<Domain>,
}

impl Guest {
    fn new(place: &Domain, networks: &Networks<Domain>, number: u8, bridge: &str) -> Self {
        let mac = Mac([0, 0x16, 0x3e, 0, 0, number]);
        let vif = Vif {
            frontend: DomId(number.into()),
            handle: 0,
            name: format!("vif{number}.0"),
            mac,
            addresses: Vec::new(),
            bridge: Some(bridge.into()),
            mtu: 1500,
            locked: false,
            isolated: false,
        };
        let namespace = Namespace::new();
        let tap = Tap::open_in(&namespace.file, "eth0").unwrap();
        tap.set_mac(mac.0).unwrap();
        tap.set_up(true).unwrap();
        let device = Device::new(place.clone(), tap).unwrap();
        let ends = [networks.plug(&vif).unwrap(), Box::new(device)];
        Guest {
            namespace,
            _cable: Cable::new(place, ends, 1).unwrap(),
        }
    }

    /// Asks for an address by DHCP, and takes it.
    fn lease(&self) -> String {
        let script = tempfile::NamedTempFile::new().unwrap();
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
            ip address add $ip/$mask dev $interface\nip route add default via $router\n";
        std::fs::write(script.path(), text).unwrap();
        run(&format!("chmod +x {}", script.path().display()));
        // It cannot be run while it is open for writing.
        let script = script.into_temp_path();
        self.namespace.within(|| {
            run(&format!(
                "busybox udhcpc -i eth0 -f -q -n -t 10 -T 1 -s {}",
                script.display()
            ));
            let shown = said("ip -4 -o address show dev eth0");
            let mut address = shown.split_whitespace().skip_while(|word| *word != "inet");
            address.nth(1).unwrap().to_owned()
        })
    }
}

/// A server in a namespace of its own, on a wire with the host, which answers whoever connects with
/// the address that it saw.
fn world() -> Namespace {
    let server = Namespace::new();
    run("ip link add out type veth peer name in");
    run(&format!("ip link set in netns {}", server.file.display()));
    run("ip addr add 203.0.113.1/24 dev out");
    run("ip link set out up");
    server.within(|| {
        run("ip addr add 203.0.113.9/24 dev in");
        run("ip link set in up");
        let listener = TcpListener::bind("203.0.113.9:80").unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = stream.write_all(from.ip().to_string().as_bytes());
            }
        });
    });
    server
}

fn networks(place: &Domain, text: &str) -> Networks<Domain> {
    let text = format!("name = 'a'\n{text}");
    let config = HostConfig::parse(&text, "/networks.toml").unwrap();
    Networks::start(place, &config.networks).unwrap()
}

fn answer() -> std::io::Result<String> {
    let to = "203.0.113.9:80".parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

const NAT: &str = "[[network]]\nname = 'lan'\ntype = 'nat'\nsubnet = '10.77.0.0/24'";

#[test]
fn nat_gives_guests_addresses_and_lets_them_reach_what_the_host_reaches() {
    apart(|place| {
        let server = world();
        let networks = networks(&place, NAT);
        let guest = Guest::new(&place, &networks, 5, "lan");
        let lease = guest.lease();
        assert!(lease.starts_with("10.77.0."), "{lease}");
        let seen = guest.namespace.within(answer).unwrap();
        assert_eq!(seen, "203.0.113.1", "as the host");

        // Nobody out there reaches the guest, though it knows the way.
        let there: IpAddr = lease.split_once('/').unwrap().0.parse().unwrap();
        let reader = guest
            .namespace
            .within(|| UdpSocket::bind((there, 99)).unwrap());
        reader.set_nonblocking(true).unwrap();
        server.within(|| {
            run("ip route add 10.77.0.0/24 via 203.0.113.1");
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"in", (there, 99)).unwrap();
        });
        let host = UdpSocket::bind("10.77.0.1:0").unwrap();
        host.send_to(b"ok", (there, 99)).unwrap();
        reader.set_nonblocking(false).unwrap();
        let mut got = [0; 8];
        let (len, _) = reader.recv_from(&mut got).unwrap();
        assert_eq!(&got[..len], b"ok", "the host does, later, and is the first");
    });
}

#[test]
fn nat_leaves_nothing_behind() {
    apart(|place| {
        let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let networks = networks(&place, NAT);
        assert!(said("nft list tables").contains("parapet0"));
        assert!(said("ip addr").contains("10.77.0.1/24"));
        drop(networks);
        assert_eq!(said("nft list tables"), "");
        assert!(!said("ip link").contains("parapet0"));
        let after = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(before, after);
        // Its ports are free again, when it has heard that it is to go.
        while UdpSocket::bind("0.0.0.0:67").is_err() {
            thread::yield_now();
        }
    });
}

#[test]
fn nat_that_cannot_be_had_says_why() {
    apart(|place| {
        // As if there were another DHCP server.
        let _other = UdpSocket::bind("0.0.0.0:67").unwrap();
        let text = format!("name = 'a'\n{NAT}");
        let config = HostConfig::parse(&text, "/networks.toml").unwrap();
        let (name, error) = Networks::start(&place, &config.networks).err().unwrap();
        let error = error.to_string();
        assert_eq!(name, "lan");
        assert!(
            error.contains("dnsmasq") && error.lines().count() == 1,
            "{error}"
        );
        assert_eq!(said("nft list tables"), "");
    });
}

#[test]
fn isolated_guests_reach_each_other_and_nothing_else() {
    apart(|place| {
        let _server = world();
        let networks = networks(&place, "[[network]]\nname = 'x'\ntype = 'isolated'");
        let (a, b) = (
            Guest::new(&place, &networks, 5, "x"),
            Guest::new(&place, &networks, 6, "x"),
        );
        b.namespace
            .within(|| run("ip addr add 10.1.0.2/24 dev eth0"));
        a.namespace.within(|| {
            run("ip addr add 10.1.0.1/24 dev eth0");
            run("ip route add default via 10.1.0.254");
            // A neighbour that answers nothing: all that leaves is seen by the switch.
            run("ip neigh add 10.1.0.254 lladdr 02:00:00:00:00:01 dev eth0");
            run("busybox ping -c 1 -W 10 10.1.0.2");
            assert!(answer().is_err());
            let leases = Command::new("busybox")
                .args("udhcpc -i eth0 -f -q -n -t 1 -T 1 -s /bin/true".split(' '))
                .output();
            assert!(!leases.unwrap().status.success());
        });
        let heard = networks.switch("x").unwrap().stations();
        let ports: Vec<&str> = heard.iter().map(|heard| &*heard.port).collect();
        assert_eq!(ports, ["vif5.0", "vif6.0"]);
    });
}

#[test]
fn bridged_vifs_are_devices_on_a_bridge_of_the_host() {
    apart(|place| {
        run("ip link add xenbr0 type bridge");
        run("ip link set xenbr0 up");
        run("ip addr add 10.2.0.1/24 dev xenbr0");
        let networks = networks(
            &place,
            "[[network]]\nname = 'out'\ntype = 'bridged'\nbridge = 'xenbr0'",
        );
        let a = Guest::new(&place, &networks, 5, "out");
        let b = Guest::new(&place, &networks, 6, "xenbr0");
        for (guest, address) in [(&a, "10.2.0.5/24"), (&b, "10.2.0.6/24")] {
            guest.namespace.within(|| {
                run(&format!("ip addr add {address} dev eth0"));
                run("busybox ping -c 1 -W 10 10.2.0.1");
            });
        }
        a.namespace
            .within(|| run("busybox ping -c 1 -W 10 10.2.0.6"));
        assert!(said("ip link show vif6.0").contains("master xenbr0"));
    });
}

#[test]
fn the_subnet_is_what_the_configuration_says() {
    let text = format!("name = 'a'\n{NAT}");
    let config = HostConfig::parse(&text, "/x.toml").unwrap();
    let expected: Subnet = "10.77.0.0/24".parse().unwrap();
    assert_eq!(
        config.networks[0].kind,
        parapet::config::NetworkKind::Nat(expected)
    );
}
