//! Errors of calls to an address with a different kind of server.

use crate::{Adapter, create, key, one};
use kafkaq_core::{Effect, ErrorKind};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A server that responds to everything with these bytes.
fn says(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut question = [0; 1024];
                while let Ok(1..) = client.read(&mut question) {
                    let _ = client.write_all(answer);
                }
            });
        }
    });
    addr
}

pub async fn another_kind_of_server_is_taken_for_what_it_is<A: Adapter>() {
    for answer in
        [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x15\x03\x03\x00\x02\x02\x16", b"SSH-2.0-OpenSSH\r\n"]
    {
        let addr = says(answer);
        let error = one(&A::at(addr, LIMIT), create(&key("a"), "a")).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{error}");
        let advice = error.advice().unwrap();
        assert!(advice.contains("something other than") && advice.contains(&addr.to_string()), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
