//! The `holdfast` binary.

/// A request makes many small allocations, some of which another thread frees: in profiles of small GETs and PUTs the C
/// library's allocator had about a twelfth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    holdfast_node::cli::main()
}
