//! The `holdfast` binary.

fn main() -> std::process::ExitCode {
    holdfast_node::cli::main()
}
