//! Exit codes, and the last words of a subcommand that failed.

use std::io;

use crate::client;

/// It worked.
pub(crate) const OK: u8 = 0;
/// It did not work.
pub(crate) const FAILED: u8 = 1;
/// What was asked makes no sense: usage (clap's own code), a bad file, a value the server refused.
pub(crate) const INVALID: u8 = 2;
/// There is no server where it was looked for.
pub(crate) const UNREACHABLE: u8 = 3;

/// The line every `--help` ends with.
macro_rules! help {
    ($examples:literal) => {
        $crate::exit::help!($examples, "")
    };
    ($examples:literal, $more:literal) => {
        concat!(
            "Examples:\n",
            $examples,
            "\n\nExit codes: 0 ok, 1 failed, 2 usage or invalid input, 3 cannot reach the server.",
            $more
        )
    };
}
pub(crate) use help;

/// What the user gave makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(pub(crate) String);

/// Says on stderr why a subcommand failed, and chooses its exit code.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    // `sluicegate get services | head`: the reader has seen enough, which is no failure.
    if is_broken_pipe(error) {
        return OK;
    }
    eprintln!("error: {error:#}");
    code(error)
}

/// Whether nobody reads what is printed.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is))
}

/// The exit code of an error: that of the first cause that has one.
fn code(error: &anyhow::Error) -> u8 {
    let of_cause = |cause: &(dyn std::error::Error + 'static)| {
        if cause.is::<Invalid>() {
            return Some(INVALID);
        }
        cause.downcast_ref::<client::Error>().map(client::Error::exit_code)
    };
    error.chain().find_map(of_cause).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use hyper::StatusCode;
    use xds_server::api::types::ErrorBody;

    use super::*;

    fn refused(status: StatusCode) -> anyhow::Error {
        let body = ErrorBody { code: String::new(), message: String::new(), details: Vec::new() };
        client::Error::Refused { status, body }.into()
    }

    #[test]
    fn a_cause_keeps_its_code_under_any_context() {
        let unreachable = client::Error::Unreachable { api: String::new(), cause: String::new() };
        assert_eq!(code(&anyhow::Error::from(unreachable).context("while applying")), UNREACHABLE);
        let invalid: anyhow::Result<()> = Err(Invalid("no".to_owned()).into());
        assert_eq!(code(&invalid.context("a").context("b").unwrap_err()), INVALID);
        assert_eq!(code(&anyhow!("anything else")), FAILED);
    }

    #[test]
    fn what_the_server_finds_invalid_is_invalid_and_the_rest_failed() {
        for status in
            [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY, StatusCode::PAYLOAD_TOO_LARGE]
        {
            assert_eq!(code(&refused(status)), INVALID, "{status}");
        }
        for status in [StatusCode::NOT_FOUND, StatusCode::CONFLICT, StatusCode::INTERNAL_SERVER_ERROR] {
            assert_eq!(code(&refused(status)), FAILED, "{status}");
        }
    }
}
