//! Features, quotas and CONTROL.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

pub(super) fn set_quota(domid: Option<DomId>, name: &[u8], value: u32) -> Request<'_> {
    Request::SetQuota { domid, name, value }
}

pub(super) fn get_quota(domid: Option<DomId>, name: &[u8]) -> Request<'_> {
    Request::GetQuota { domid, name }
}

#[test]
fn features_are_chosen_before_a_domain_is_introduced_and_for_no_later_one() {
    let mut bench = Bench::new();
    let (local, six) = (bench.local, DomId(6));
    let ask = |bench: &mut Bench, request: &Request<'_>| {
        let answer = bench.ask(local, 0, request);
        answer.map(|payload| String::from_utf8(payload).unwrap())
    };
    let choose = |domid, features| Request::SetFeature {
        domid,
        features: ServerFeatures::from_bits_retain(features),
    };
    let all = Ok(String::from("15\0"));
    let own = bench.ask(bench.guest, 0, &Request::GetFeature(None));
    assert_eq!(own, Ok(b"15\0".to_vec()));
    assert_eq!(ask(&mut bench, &Request::GetFeature(None)), all);
    assert_eq!(ask(&mut bench, &Request::GetFeature(Some(six))), all);
    for (request, error) in [
        (Request::GetFeature(Some(DomId(99))), Errno::ENOENT),
        (choose(DomId(99), 2), Errno::ENOENT),
        (choose(DOMAIN, 2), Errno::EBUSY),
        (choose(six, 16), Errno::EINVAL),
    ] {
        assert_eq!(ask(&mut bench, &request), Err(error), "{request:?}");
    }

    ask(&mut bench, &choose(six, 2)).unwrap();
    let world = &mut bench.world;
    let guest = bench.server.introduce(six, Port(1), world).unwrap();
    assert_eq!(
        bench.world.0.last().unwrap(),
        &alloc::format!("connect {} 6 1 2", guest.0)
    );
    let own = bench.ask(guest, 0, &Request::GetFeature(None));
    assert_eq!(own, Ok(b"2\0".to_vec()));
    let (path, token, depth) = (b"/".as_slice(), b"t".as_slice(), Some(1));
    let deep = Request::Watch { path, token, depth };
    assert_eq!(bench.ask(guest, 0, &deep), Err(Errno::EINVAL));
    bench.ask(bench.guest, 0, &deep).unwrap();

    bench.server.release(six, &mut bench.world);
    assert_eq!(ask(&mut bench, &Request::GetFeature(Some(six))), all);
}

#[test]
fn an_entry_for_any_domain_counts_where_that_is_a_feature() {
    let mut bench = Bench::new();
    let features = ServerFeatures::ERROR;
    let domid = DomId(6);
    let choose = Request::SetFeature { domid, features };
    bench.ask(bench.local, 0, &choose).unwrap();
    let world = &mut bench.world;
    let guest = bench.server.introduce(domid, Port(1), world).unwrap();
    let permissions = vec![Permission::none(domid), Permission::read(DomId::ANY)];
    let path = b"/n".as_slice();
    let set = Request::SetPerms { path, permissions };
    bench.ask(bench.local, 0, &Request::Mkdir(path)).unwrap();
    bench.ask(bench.local, 0, &set).unwrap();
    bench.ask(bench.guest, 0, &Request::Read(path)).unwrap();
    bench.ask(guest, 0, &set).unwrap();
    let read = bench.ask(bench.guest, 0, &Request::Read(path));
    assert_eq!(read, Err(Errno::EACCES));
}

#[test]
fn quotas_are_those_of_the_domain_and_else_the_ones_set_for_all_when_it_was_first_heard_of() {
    let mut bench = Bench::new();
    let (local, five, six) = (bench.local, Some(DOMAIN), Some(DomId(6)));
    let mut ask = |request: &Request<'_>| {
        let answer = bench.ask(local, 0, request);
        answer.map(|payload| String::from_utf8(payload).unwrap())
    };
    let names = "nodes watches outstanding memory soft-memory transactions transaction-nodes \
                 node-permissions path-max node-size\0";
    assert_eq!(ask(&Request::ListQuotas).unwrap(), names);
    ask(&set_quota(None, b"nodes", 20)).unwrap();
    ask(&set_quota(five, b"watches", 0)).unwrap();
    for (domid, name, value) in [
        (None, "nodes", "20\0"),
        (five, "nodes", "1000\0"),
        (six, "nodes", "20\0"),
        (five, "watches", "0\0"),
        (None, "permissions", "5\0"),
        (None, "soft-memory", "2097152\0"),
    ] {
        let got = ask(&get_quota(domid, name.as_bytes()));
        assert_eq!(got.unwrap(), value, "{domid:?} {name}");
    }
    for (request, error) in [
        (get_quota(Some(DomId(99)), b"nodes"), Errno::ENOENT),
        (set_quota(Some(DomId(99)), b"nodes", 1), Errno::ENOENT),
        (get_quota(None, b"soft-nodes"), Errno::EINVAL),
        (set_quota(None, b"what", 1), Errno::EINVAL),
        (set_quota(five, b"nodes", u32::MAX), Errno::EINVAL),
    ] {
        assert_eq!(ask(&request), Err(error), "{request:?}");
    }

    ask(&set_quota(five, b"nodes", 2)).unwrap();
    bench.ask(bench.guest, 0, &write(b"a", b"")).unwrap();
    let full = bench.ask(bench.guest, 0, &write(b"b", b""));
    assert_eq!(full, Err(Errno::ENOSPC));
    bench.server.release(DOMAIN, &mut bench.world);
    let again = bench.ask(local, 0, &get_quota(five, b"nodes"));
    assert_eq!(again, Ok(b"20\0".to_vec()));
}

impl Bench {
    /// `command|argument|...` by CONTROL: what is answered, as text.
    fn control(&mut self, line: &str) -> Result<String, Errno> {
        let mut words = line.split('|').map(str::as_bytes);
        let command = words.next().unwrap();
        let arguments = words.collect();
        let request = Request::Control { command, arguments };
        let answer = self.ask(self.local, 0, &request)?;
        Ok(String::from_utf8(answer).unwrap())
    }
}

#[test]
fn control_answers_as_c_xenstored_does() {
    let mut bench = Bench::new();
    let help = bench.control("help").unwrap();
    assert!(
        help.starts_with("check           \nlog             [on|off"),
        "{help}"
    );
    assert!(help.ends_with("help            \n\0"), "{help}");
    for line in [
        "check|x",
        "log|x",
        "log|+x",
        "log|on|x",
        "logfile",
        "memreport",
        "memreport|a|b",
        "print",
        "print|a|b",
        "quota|set|nodes",
        "quota|set|nodes|0",
        "quota|set|what|1",
        "quota|set|soft-memory|5",
        "quota|max|x",
        "quota|5|x",
        "quota-soft|set|nodes|5",
        "quota-soft|5",
        "help|x",
        "what",
        "",
    ] {
        assert_eq!(bench.control(line), Err(Errno::EINVAL), "{line}");
    }
    assert_eq!(bench.control("quota|99"), Err(Errno::ENOENT));
    for line in ["check", "print|hello", "log|on", "log|-io", "log|off"] {
        assert_eq!(bench.control(line).unwrap(), "OK\0", "{line}");
    }
    let log = "Log switch settings:\nobj     : on\nio      : off\nwrl     : off\nacc     : off\n\0";
    assert_eq!(bench.control("log").unwrap(), log);

    bench.control("quota|set|nodes|50").unwrap();
    bench.control("quota-soft|set|memory|5000").unwrap();
    let quotas = bench.control("quota").unwrap();
    assert!(quotas.starts_with("Quota settings:\nnodes            :       50 Nodes per domain\n"));
    let soft = "Quota settings:\nmemory           :     5000 Total Xenstore memory per domain\n\0";
    assert_eq!(bench.control("quota-soft").unwrap(), soft);

    for at in ["x", "y"] {
        bench.ask(bench.guest, 0, &watch(at.as_bytes())).unwrap();
        bench.received(bench.guest);
    }
    let (path, token) = (b"x", b"t");
    let unwatch = Request::Unwatch { path, token };
    bench.ask(bench.guest, 0, &unwatch).unwrap();
    let used = bench.control("quota|5").unwrap();
    let watches = "watches          :        1 (max        2)\n";
    assert!(
        used.starts_with("Domain 5:\nnodes            :        1 (max        1)\n"),
        "{used}"
    );
    assert!(used.contains(watches), "{used}");
    let most = bench.control("quota|max").unwrap();
    assert!(most.contains("watches          :        2\n"), "{most}");
    let most = bench.control("quota|max|-r").unwrap();
    assert!(most.contains("watches          :        0\n"), "{most}");
}

#[test]
fn what_is_traced_goes_to_the_file_that_was_named() {
    let mut bench = Bench::new();
    bench.control("logfile|/trace").unwrap();
    bench
        .ask(bench.guest, 0, &Request::Read(b"nothing"))
        .unwrap_err();
    bench.control("log|off").unwrap();
    bench
        .ask(bench.guest, 0, &Request::Read(b"more"))
        .unwrap_err();
    bench.control("memreport").unwrap();
    let written: Vec<_> = bench
        .world
        .0
        .iter()
        .filter(|it| it.starts_with("/trace: "))
        .collect();
    let [.., traced, report] = &written[..] else {
        panic!("{written:?}")
    };
    assert!(
        traced.contains("Read tx 0 nothing") && traced.contains("ENOENT"),
        "{traced}"
    );
    assert!(!written.iter().any(|it| it.contains("more")), "{written:?}");
    let line = "\n     5            1            0            0            0           39\n";
    assert!(report.contains(line), "{report}");
}

#[test]
fn who_wants_to_see_only_what_was_over_a_quota_does() {
    let mut bench = Bench::new();
    for line in ["log|-io", "log|-obj", "log|+acc", "logfile|/trace"] {
        bench.control(line).unwrap();
    }
    bench
        .ask(bench.guest, 0, &Request::Read(b"nothing"))
        .unwrap_err();
    let (path, value) = (&b"large"[..], &[0; 3000][..]);
    let refused = bench.ask(bench.guest, 0, &Request::Write { path, value });
    assert_eq!(refused.unwrap_err(), Errno::ENOSPC);
    bench.control("log|off").unwrap();
    let written = bench.world.0.concat();
    assert!(written.contains("Write tx 0 large: ENOSPC"), "{written}");
    assert!(!written.contains("nothing"), "{written}");
}

#[test]
fn too_many_permissions_are_refused_before_their_domains_are_looked_up() {
    let mut bench = Bench::new();
    let path = b"/local/domain/5".as_slice();
    let entry = |domid| Permission::read(DomId(domid));
    let own = [Permission::none(DOMAIN)].into_iter();
    let many = |last| own.clone().chain((6..=last).map(entry)).collect();
    let permissions = many(9);
    let allowed = Request::SetPerms { path, permissions };
    let permissions = [many(9), many(9)].concat();
    let refused = Request::SetPerms { path, permissions };
    assert_eq!(bench.ask(bench.guest, 0, &refused), Err(Errno::ENOSPC));
    assert!(!bench.server.store().knows(DomId(9)));
    bench.ask(bench.guest, 0, &allowed).unwrap();
    assert!(bench.server.store().knows(DomId(9)));
}
