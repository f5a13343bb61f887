//! The library in memory: streams that do what a test tells them, on a clock that stands still.

#![expect(
    clippy::disallowed_methods,
    reason = "a test owns the tasks that it spawns, and its runtime ends with it"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers as well"
)]

#[cfg(feature = "balance")]
mod balance;
mod budget;
mod checklist;
mod client;
mod client_again;
mod client_chain;
mod client_connection;
mod client_hello;
mod client_panics;
mod client_serial;
mod conn;
mod connect;
mod connect_race;
mod deadline;
mod deadline_connect;
mod deadline_dry_run;
mod deadline_handle;
mod deadline_settings;
mod detect;
mod detect_services;
mod error;
mod filter;
mod forward;
mod forward_dial;
mod frame;
mod frame_account;
mod frame_codec;
mod frame_driver;
mod frame_dry_run;
mod frame_late;
mod frame_leave;
mod frame_multiplexed;
mod frame_multiplexed_ends;
mod frame_multiplexed_time;
mod frame_rpc;
mod guard;
mod handshakes;
mod http;
mod http_dry_run;
mod http_frames;
mod http_handler;
mod http_late;
mod http_leave;
mod incoming;
mod incoming_turns;
mod io;
mod limit;
mod limit_per_peer;
mod limit_rate;
mod limit_table;
mod limit_vectors;
mod meter;
mod meter_connect;
mod networks;
mod pool;
mod pool_again;
mod pool_down;
mod pool_keys;
mod pool_others;
mod pool_share;
mod pool_vectors;
mod pool_wait;
mod pool_warm;
mod pressure;
mod pressure_idle;
mod pressure_limits;
mod pressure_task;
#[cfg(feature = "proxy-protocol")]
mod proxy_connect;
#[cfg(feature = "proxy-protocol")]
mod proxy_header;
#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;
#[cfg(feature = "proxy-protocol")]
mod proxy_vectors;
mod server;
mod throttle;
mod throttle_handle;
mod throttle_shared;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_certificates;
#[cfg(feature = "tls")]
mod tls_connect;
#[cfg(feature = "tls")]
mod tls_failures;
#[cfg(feature = "tls")]
mod tls_files;
#[cfg(feature = "tls")]
mod tls_limits;
#[cfg(feature = "tls")]
mod tls_refusals;
mod trace;
mod vectors;
mod ways_out;

#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]
mod support;
