//! The RPC cells: all contestants of a cell in the same rounds, one after the other, each round
//! begun by the next one, so that what drifts on the machine drifts for all of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::args::RpcArgs;
use crate::cell::Cell;
use crate::client::{Load, Sample};
use crate::contestants::{self, Contestant};
use crate::cpu::CpuClock;
use crate::report::{CellReport, write_json};
use crate::server::ServerProcess;

pub(crate) fn run(args: &RpcArgs) -> Result<()> {
    let contestants = contestants::for_rpc(&args.only)?;
    contestants::find(&args.baseline)?;
    ensure!(
        args.cores.server_core != args.cores.client_core,
        "server and client share a core"
    );
    let cells = if args.cells.is_empty() {
        Cell::all()
    } else {
        args.cells.clone()
    };
    let mut reports = Vec::with_capacity(cells.len());
    for cell in cells {
        let series = measure(cell, &contestants, args)?;
        let report = CellReport::new(cell, args, &series);
        println!("{report}");
        reports.push(report);
    }
    if let Some(path) = &args.json {
        write_json(path, &reports)?;
    }
    Ok(())
}

/// A contestant's samples, one for each round.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
}

/// A contestant in a cell: its own fresh server process, and the connections to it.
struct Lane {
    series: Series,
    clock: CpuClock,
    // Before the server, so that the client closes first and the server ends last.
    load: Load,
    _server: ServerProcess,
}

impl Lane {
    fn open(cell: Cell, contestant: &Contestant, args: &RpcArgs) -> Result<Self> {
        let server = ServerProcess::start(contestant, args.cores.server_core)?;
        Ok(Self {
            series: Series {
                name: contestant.name,
                samples: Vec::new(),
            },
            clock: server.cpu_clock()?,
            load: Load::open(server.address(), cell)?,
            _server: server,
        })
    }

    fn window(&mut self, length: Duration) -> Result<()> {
        self.series
            .samples
            .push(self.load.window(length, self.clock)?);
        Ok(())
    }
}

fn measure(cell: Cell, contestants: &[&Contestant], args: &RpcArgs) -> Result<Vec<Series>> {
    let length = Duration::from_millis(args.window_ms);
    let mut lanes = Vec::with_capacity(contestants.len());
    for contestant in contestants {
        let lane = Lane::open(cell, contestant, args);
        lanes.push(lane.with_context(|| format!("{} in cell {cell}", contestant.name))?);
    }
    for round in 0..args.rounds as usize {
        for turn in 0..lanes.len() {
            let next = (round + turn) % lanes.len();
            let lane = &mut lanes[next];
            lane.window(length)
                .with_context(|| format!("{} in cell {cell}", lane.series.name))?;
        }
    }
    Ok(lanes
        .into_iter()
        .map(|lane| lane.series)
        .collect())
}
