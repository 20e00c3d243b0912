//! The `holdfast` binary.

/// A request makes some two hundred small allocations, many of which another thread frees: the C library's allocator was a
/// twelfth of a PUT and of a small GET.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    holdfast_node::cli::main()
}
