use super::*;

#[test]
fn errors_of_candle_carry_no_backtrace_into_messages() {
    // Candle's form of a failure if RUST_BACKTRACE is set.
    let traced = || candle_core::Error::WithBacktrace {
        inner: Box::new(candle_core::Error::Msg("shapes differ".into())),
        backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
    };
    let error = Error::from(traced().context("in a layer"));
    assert_eq!(error.to_string(), "tensor operation failed: in a layer\nshapes differ");
    assert_eq!(format!("{error:?}"), error.to_string());
    let error = Error::weights_from("w.pth", "cannot be read", traced());
    assert_eq!(error.to_string(), "w.pth: cannot be read: shapes differ");
}
