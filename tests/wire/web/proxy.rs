//! Behind a proxy: who the client is.

use std::process::Command;

use super::{BOTH, Site, closed};
use crate::{
    proxy_protocol::haproxy,
    support::{
        process::Listening,
        tool::{Scratch, output},
    },
};

#[test]
fn behind_haproxy_the_client_is_the_one_it_announces() {
    for example in BOTH
        .into_iter()
        .chain(["hyper_guarded"])
    {
        let site = Site::start(example, "--proxy-protocol 127.0.0.0/8");
        let Listening::Tcp(app) = site.at else {
            panic!("not on TCP");
        };
        let scratch = Scratch::new();
        let front = haproxy(&scratch, "", "send-proxy-v2", app);

        let url = format!("http://{}/whoami", front.addr);
        let own = "%{local_ip}:%{local_port}";
        let said = output(Command::new("curl").args(["--silent", "--write-out", own, &url]));

        let (known, own) = said.split_once('\n').unwrap();
        assert_eq!(known, format!("{own} HTTP/1.1"), "{example}");
        drop(front);
        let (report, _) = site.drained();
        // It may not have been told of the end yet when it was told to drain.
        let ended: u64 = closed(&report).values().sum();
        assert!(ended >= 1, "{report}");
    }
}
