//! Code that reads tensors back as if it could wait, run in a browser, where nothing may.
//!
//! Where it asks for memory that has not been read ([`Tensor::to_vec`] and its like) it ends with an error. The memory
//! is then read without blocking, and the code runs again from its start, with what was read for its answer; so on
//! until it comes to its end. Each read-back costs all work before it once more: this is for code that computes the
//! same every time and reads little, as the correctness matrix does. Everything else takes the `_async` methods.

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// What has been read for one run of the code.
#[derive(Default)]
struct Tape {
    answers: Vec<Vec<u8>>,
    next: usize,
    /// What it asked for that was not there.
    wanted: Option<Tensor>,
}

thread_local! {
    /// That of the code that runs: there between two awaits alone.
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Runs `body` to its end, again and again from its start, reading what it asks for in between.
///
/// # Errors
/// Where a read-back fails. What `body` returns at its end is the value, an error of its own included.
pub async fn replay<T>(body: impl Fn() -> T) -> Result<T> {
    let mut tape = Tape::default();
    loop {
        tape.next = 0;
        TAPE.set(Some(tape));
        let value = body();
        tape = TAPE.take().unwrap_or_default();
        match tape.wanted.take() {
            Some(tensor) => tape.answers.push(tensor.to_bytes_async().await?),
            None => return Ok(value),
        }
    }
}

/// The bytes of a tensor that an earlier run of the code asked for.
pub(crate) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    TAPE.with_borrow_mut(|tape| {
        let Some(tape) = tape else {
            return Err(Error::argument(
                "read-back",
                "one that waits",
                "an async method, as in a browser nothing may wait",
            ));
        };
        if let Some(answer) = tape.answers.get(tape.next) {
            tape.next += 1;
            return Ok(answer.clone());
        }
        tape.wanted.get_or_insert_with(|| tensor.clone());
        Err(Error::argument("read-back", "not read yet", "another run"))
    })
}
