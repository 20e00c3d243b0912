#!/usr/bin/env python3
"""Runs the boto3 tests against a node of their own.

    run_tests.py --bin PATH [--work DIR] [NAME ...]

Starts `PATH dev` on free ports and a fresh directory, runs every test_*.py beside this file (or the tests named), stops
the node, and ends with `boto3 VERSION: N passed, N failed`. A skipped test counts as failed: what cannot be tested has
not been shown to work.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = pathlib.Path(__file__).parent
ACCESS_KEY = "HFTESTACCESSKEY00001"
SECRET_KEY = "holdfast-test-secret-key-of-40-characters"
READY_SECONDS = 120
STOP_SECONDS = 120


class Node:
    """A node process; only this one is ever signalled."""

    def __init__(self, binary, work):
        work.mkdir(parents=True, exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="boto3-", dir=work))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        environment["HOLDFAST_S3_DOMAINS"] = "s3.localhost"
        # Lifecycle rules are to be seen at work: their days pass quickly.
        environment["HOLDFAST_LIFECYCLE_DAY"], environment["HOLDFAST_LIFECYCLE_INTERVAL"] = "3 s", "500 ms"
        with open(self.directory / "node.log", "wb") as log:
            self.process = subprocess.Popen(
                [binary, "dev", "--data-dir", self.directory / "data", "--s3-addr", "127.0.0.1:0",
                 "--admin-addr", "127.0.0.1:0", "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, "--json"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=self.directory, env=environment)
        watchdog = threading.Timer(READY_SECONDS, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            self.show_log()
            raise SystemExit("the node did not become ready")
        told = json.loads(line)
        self.address, self.admin = told["s3_addr"], told["admin_addr"]

    def show_log(self):
        text = (self.directory / "node.log").read_text(errors="replace")
        print("--- the node's log, its end ---", text[-16_000:], "---", sep="\n")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return code

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()))
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    import boto3

    node = Node(os.path.abspath(arguments.bin), arguments.work)
    os.environ["TEST_S3_ADDRESS"] = node.address
    os.environ["TEST_ADMIN_ADDRESS"] = node.admin
    os.environ["TEST_ACCESS_KEY"], os.environ["TEST_SECRET_KEY"] = ACCESS_KEY, SECRET_KEY
    sys.path.insert(0, str(HERE))
    loader = unittest.TestLoader()
    if arguments.names:
        suite = loader.loadTestsFromNames(arguments.names)
    else:
        suite = loader.discover(str(HERE), pattern="test_*.py")
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.skipped) + len(result.unexpectedSuccesses)
    passed = result.testsRun - failed
    code = node.stop()
    if code != 0:
        print(f"the node stopped with {code}")
        failed += 1
    if failed:
        node.show_log()
    node.remove()
    print(f"boto3 {boto3.__version__}: {passed} passed, {failed} failed")
    sys.exit(1 if failed or passed == 0 else 0)


if __name__ == "__main__":
    main()
