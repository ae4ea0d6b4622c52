//! Programs that must not compile, with the messages that say why (catalogue A8), and one that must.
//! They stand with the derive; they need nothing but this crate and that one.

#[test]
fn programs_that_would_break_the_container_do_not_compile() {
    let t = trybuild::TestCases::new();
    t.compile_fail("../derive/tests/refused/*.rs");
    t.pass("../derive/tests/accepted/*.rs");
}
