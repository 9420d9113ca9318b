use super::*;

fn build(name: &str, value: &str) -> Result<Settings> {
    Settings::check(Builder::new("127.0.0.1:1".into()).set(name, value))
}

#[test]
fn setting_that_would_break_a_guarantee_is_refused_with_the_reason() {
    for (name, value) in [
        ("auto.offset.reset", "latest"),
        ("auto.offset.reset", "error"),
        ("enable.auto.commit", "true"),
        ("enable.auto.offset.store", "true"),
        ("acks", "1"),
        ("request.required.acks", "0"),
        ("enable.idempotence", "false"),
        ("delivery.report.only.error", "true"),
        ("transactional.id", "t"),
        ("group.id", "g"),
        ("statistics.interval.ms", "0"),
        ("statistics.interval.ms", "10001"),
    ] {
        let e = build(name, value).expect_err(name);
        assert_eq!(e.kind(), ErrorKind::Misconfigured);
        assert!(e.to_string().contains(name) && e.advice().is_some(), "{e}");
    }
    let only_consumer =
        Builder::new("127.0.0.1:1".into()).set_consumer("auto.offset.reset", "latest").build();
    assert!(only_consumer.is_err());
}

#[test]
fn invalid_address_is_refused_and_named() {
    let check = |bootstrap: &str| Settings::check(Builder::new(bootstrap.into()));
    for wrong in [
        "",
        " ",
        ",",
        "localhost:port",
        "localhost:0",
        "localhost:70000",
        "localhost:",
        ":9092",
        "host name:9092",
        "http://localhost:9092",
        "localhost:9092/topic",
        "a:1:2",
        "[::1",
        "[x]:1",
        "k1:9092,k2:x",
        "localhost:-1",
    ] {
        let e = check(wrong).expect_err(wrong);
        assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
        let named = wrong.rsplit(',').next().unwrap().trim();
        assert!(e.to_string().contains("bootstrap") && e.to_string().contains(named), "{e}");
    }
    for (good, taken) in [
        ("localhost", "localhost"),
        ("k-1.example:9093", "k-1.example:9093"),
        ("[::1]:9092", "[::1]:9092"),
        ("SASL_SSL://k:1", "SASL_SSL://k:1"),
        (" k1:1, k2:2 ,", "k1:1,k2:2"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
    ] {
        assert_eq!(check(good).expect(good).bootstrap(), taken);
    }
}

#[test]
fn out_of_range_timeout_is_refused_and_named() {
    let check = |limit| Settings::check(Builder::new("k:1".into()).request_timeout(limit));
    for wrong in [Duration::ZERO, Duration::from_millis(99), Duration::from_secs(3601), Duration::MAX] {
        let e = check(wrong).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
        assert!(e.to_string().contains("request_timeout") && e.to_string().contains("3600s"), "{e}");
    }
    for good in [Duration::from_millis(100), Duration::from_secs(3600)] {
        Builder::new("k:1".into()).request_timeout(good).build().unwrap();
    }
}

#[test]
fn settings_that_do_not_fit_each_other_are_refused_before_anything_starts() {
    for (name, value, needs) in [
        ("session.timeout.ms", "400000", "max.poll.interval.ms"),
        ("fetch.max.bytes", "1000", "fetch.max.bytes"),
        ("max.in.flight", "100", "max.in.flight"),
        ("linger.ms", "20000", "message.timeout.ms"),
        ("reconnect.backoff.ms", "5000", "reconnect.backoff.max.ms"),
    ] {
        let e = Builder::new("127.0.0.1:1".into()).set(name, value).build().expect_err(name);
        assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
        assert!(e.to_string().contains(needs), "{e}");
    }
}

#[test]
fn the_same_settings_with_a_safe_value_pass() {
    for (name, value) in [
        ("auto.offset.reset", "earliest"),
        ("enable.auto.commit", "false"),
        ("acks", "all"),
        ("acks", "-1"),
        ("enable.idempotence", "true"),
        ("statistics.interval.ms", "1"),
        ("statistics.interval.ms", "10000"),
    ] {
        build(name, value).expect(name);
    }
}

#[test]
fn an_unknown_setting_is_named_and_its_value_is_not_shown() {
    let e = build("no.such.setting", "s3cret").unwrap_err();
    assert!(e.to_string().contains("no.such.setting") && !e.to_string().contains("s3cret"), "{e}");
    let e = build("linger.ms", "s3cret").unwrap_err();
    assert!(e.to_string().contains("linger.ms") && !e.to_string().contains("s3cret"), "{e}");
}

/// Otherwise doubts about appends would go unnoticed.
#[test]
fn a_users_debug_setting_adds_to_the_lines_that_the_producer_needs() {
    let settings = build("debug", "msg,eos").unwrap();
    assert_eq!(settings.producer().get("debug"), Some("msg,eos,broker"));
    assert_eq!(settings.reader(1).get("debug"), Some("msg,eos"));
    assert_eq!(build("linger.ms", "0").unwrap().producer().get("debug"), Some("broker"));
}

#[test]
fn no_value_shows_in_debug() {
    let b = Builder::new("127.0.0.1:1".into()).set("sasl.password", "s3cret").set_consumer("x", "s3cret");
    let shown = format!("{b:?}");
    assert!(shown.contains("sasl.password") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_users_setting_wins_over_the_default_and_stays_on_its_side() {
    let b = Builder::new("127.0.0.1:1".into())
        .set("reconnect.backoff.max.ms", "177")
        .set_producer("linger.ms", "9")
        .set_consumer("fetch.wait.max.ms", "33")
        .set_consumer("client.rack", "a");
    let s = Settings::check(b).unwrap();
    let (p, c) = (s.producer(), s.consumer("g", [0; 16], GroupProtocol::Classic));
    assert_eq!((p.get("linger.ms"), c.get("linger.ms")), (Some("9"), None));
    assert_eq!((p.get("fetch.wait.max.ms"), c.get("fetch.wait.max.ms")), (None, Some("33")));
    assert_eq!((c.get("client.rack"), s.reader(1).get("client.rack")), (Some("a"), None));
    assert_eq!(p.get("reconnect.backoff.max.ms"), Some("177"));
    assert_eq!(c.get("reconnect.backoff.max.ms"), Some("177"));
}

/// A client is given its settings in no particular order: of two names for one setting, either could win.
#[test]
fn client_gets_only_the_alias_that_was_set_last() {
    let builder = || Builder::new("127.0.0.1:1".into());
    let both =
        |config: &ClientConfig, names: [&str; 2]| names.map(|name| config.get(name).map(str::to_owned));
    for (name, other) in [
        ("linger.ms", "queue.buffering.max.ms"),
        ("message.timeout.ms", "delivery.timeout.ms"),
        ("retries", "message.send.max.retries"),
    ] {
        for names in [[name, other], [other, name]] {
            let of = |builder| both(&Settings::check(builder).unwrap().producer(), names);
            let one = [Some("9".to_owned()), None];
            assert_eq!(of(builder().set(names[0], "9")), one, "not kafkaq's");
            assert_eq!(of(builder().set(names[1], "7").set(names[0], "9")), one);
            assert_eq!(of(builder().set(names[1], "7").set_producer(names[0], "9")), one);
        }
    }
    let names = ["fetch.message.max.bytes", "max.partition.fetch.bytes"];
    let settings = Settings::check(builder().set_consumer(names[1], "4096")).unwrap();
    assert_eq!(both(&settings.reader(1), names), [None, Some("4096".into())]);
    assert_eq!(both(&settings.reader(0), names), [Some("1".into()), None]);
    let names = ["compression.type", "compression.codec"];
    let settings = Settings::check(builder().set(names[1], "none")).unwrap();
    assert!(matches!(both(&settings.compressing_producer(), names), [Some(_), None]));
    let settings = Settings::check(builder().set(names[1], "lz4")).unwrap();
    assert_eq!(both(&settings.compressing_producer(), names), [None, Some("lz4".into())]);
}

#[test]
fn settings_of_the_classic_protocol_do_not_reach_the_new_one() {
    let b = Builder::new("127.0.0.1:1".into()).set("session.timeout.ms", "7000");
    let s = Settings::check(b).unwrap();
    assert_eq!(s.consumer("g", [0; 16], GroupProtocol::Consumer).get("session.timeout.ms"), None);
    assert_eq!(s.consumer("g", [0; 16], GroupProtocol::Classic).get("session.timeout.ms"), Some("7000"));
}

#[test]
fn group_protocol_can_be_given_as_a_setting() {
    let s = Settings::check(Builder::new("x:1".into()).set("group.protocol", "classic")).unwrap();
    assert_eq!(s.protocol(), GroupProtocol::Classic);
    assert!(build("group.protocol", "new").is_err());
}
