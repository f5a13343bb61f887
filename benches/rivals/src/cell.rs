//! A cell of the result table: how large the payload, how deep the pipeline, how many connections.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::wire::{MAX_PAYLOAD, MIN_PAYLOAD};

/// Written `PAYLOADxDEPTHxCONNECTIONS`, e.g. `64x1x16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    /// Bytes of payload in each request and reply.
    pub(crate) payload: usize,
    /// Requests kept outstanding on each connection.
    pub(crate) depth: usize,
    pub(crate) connections: usize,
}

impl Cell {
    /// What is measured unless the command line says otherwise.
    pub(crate) fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for payload in [64, 4096] {
            for depth in [1, 64] {
                for connections in [1, 16, 256] {
                    cells.push(Self {
                        payload,
                        depth,
                        connections,
                    });
                }
            }
        }
        cells
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.payload, self.depth, self.connections)
    }
}

impl FromStr for Cell {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text
            .split('x')
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()
            .context("not a number")?;
        let &[payload, depth, connections] = numbers.as_slice() else {
            bail!("expected PAYLOADxDEPTHxCONNECTIONS, e.g. 64x1x16");
        };
        if !(MIN_PAYLOAD..=MAX_PAYLOAD).contains(&payload) {
            bail!("payload must be {MIN_PAYLOAD} to {MAX_PAYLOAD} bytes");
        }
        if depth == 0 || connections == 0 {
            bail!("depth and connections must be at least 1");
        }
        Ok(Self {
            payload,
            depth,
            connections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Cell;

    #[test]
    fn every_cell_reads_back_what_it_prints() {
        for cell in Cell::all() {
            assert_eq!(cell.to_string().parse::<Cell>().ok(), Some(cell));
        }
    }

    #[test]
    fn a_cell_without_work_is_refused() {
        for text in [
            "",
            "64",
            "64x1",
            "64x0x1",
            "64x1x0",
            "7x1x1",
            "64x1x1x1",
            "9999999x1x1",
        ] {
            assert!(text.parse::<Cell>().is_err(), "{text}");
        }
    }
}
