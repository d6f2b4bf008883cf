"""The Python package with the built program, without an engine: sessions for processes of this machine."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
sys.path.insert(0, str(ROOT / "python"))

import kfp_creds  # noqa: E402
from kfp_creds import _ipython, _session  # noqa: E402

# A process of the user's that asks as Google's library does, and says who it is.
WHO = """
import google.auth, google.auth.transport.requests
credentials, project = google.auth.default()
credentials.refresh(google.auth.transport.requests.Request())
print(type(credentials).__module__, credentials.service_account_email, project)
"""
LOGIN = {"type": "authorized_user", "client_id": "id", "client_secret": "s", "refresh_token": "r", "quota_project_id": "mine"}


def gone(pid, within=10.0):
    """Whether a process that is not ours to wait for ended."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


class Package(unittest.TestCase):
    """Each test in an environment and a folder of its own, with a login in reach."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kc-package-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        before, here = dict(os.environ), os.getcwd()
        self.addCleanup(lambda: (os.environ.clear(), os.environ.update(before), os.chdir(here)))
        self.addCleanup(kfp_creds.stop)
        os.chdir(self.folder)
        login = self.folder / "login"
        login.mkdir()
        (login / "application_default_credentials.json").write_text(json.dumps(LOGIN))
        for name in ("GOOGLE_APPLICATION_CREDENTIALS", "XDG_RUNTIME_DIR", "GOOGLE_CLOUD_PROJECT"):
            os.environ.pop(name, None)
        os.environ.update(HOME=str(self.folder), CLOUDSDK_CONFIG=str(login), PATH=f"{PROGRAMS}:{os.environ['PATH']}")

    def child(self, code, **more):
        """Another interpreter that has the package."""
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **more}
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


class Sessions(Package):
    def test_a_process_has_the_identity_of_the_session_and_not_the_login(self):
        with kfp_creds.session(listen=True, offline=True):
            said = subprocess.run([sys.executable, "-c", WHO], capture_output=True, text=True, check=True).stdout
        self.assertEqual(said.split(), ["google.auth.compute_engine.credentials", "offline@kfp-creds.invalid", "offline-project"])

    def test_the_environment_is_what_it_was(self):
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = "/a/key.json"
        os.environ["CLOUDSDK_AUTH_ACCESS_TOKEN"] = "of-a-person"
        before = dict(os.environ)
        with kfp_creds.session(listen=True, offline=True) as session:
            self.assertTrue(session.running)
            for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_ACCESS_TOKEN"):
                self.assertNotIn(name, os.environ)
            place = os.environ["GCE_METADATA_HOST"]
            self.assertEqual(session.environment["GCE_METADATA_HOST"], place)
            empty, pid = os.environ["CLOUDSDK_CONFIG"], session.pid
            self.assertEqual(os.listdir(empty), [])
            with urllib.request.urlopen(session.jwks) as keys:
                self.assertEqual(len(json.load(keys)["keys"]), 1)
        self.assertEqual(dict(os.environ), before)
        self.assertFalse(session.running or os.path.exists(empty) or not gone(pid, 0.1))

    def test_the_variables_of_a_session_that_runs_can_be_set_later(self):
        session = kfp_creds.Session(listen=True, offline=True)
        with self.assertRaisesRegex(kfp_creds.KfpCredsError, "does not run"):
            session.enter_environment()
        self.assertIsNone(kfp_creds.current())
        before = dict(os.environ)
        session.start(set_environment=False)
        self.assertEqual(dict(os.environ), before)
        session.start()
        self.assertEqual(os.environ["GCE_METADATA_HOST"], session.environment["GCE_METADATA_HOST"])
        session.stop()
        self.assertEqual(dict(os.environ), before)

    def test_what_somebody_else_changed_stays(self):
        with kfp_creds.session(listen=True, offline=True):
            os.environ["GCE_METADATA_IP"] = "10.0.0.1"
        self.assertEqual(os.environ["GCE_METADATA_IP"], "10.0.0.1")

    def test_an_exception_in_the_block_ends_the_session(self):
        with self.assertRaises(ZeroDivisionError), kfp_creds.session(listen=True, offline=True) as session:
            1 / 0
        self.assertFalse(session.running)

    def test_the_config_and_the_identity_are_passed_on(self):
        config = self.folder / "other.toml"
        config.write_text('project = "told"\n[identity.small]\nlifetime = "15m"\n')
        with kfp_creds.session(listen=True, offline=True, config=config, identity="small") as session:
            place = session.environment["GCE_METADATA_HOST"]
            url = f"http://{place}/computeMetadata/v1/instance/service-accounts/default/token"
            asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            with urllib.request.urlopen(asked) as answer:
                self.assertLessEqual(json.load(answer)["expires_in"], 900)
        with self.assertRaisesRegex(kfp_creds.ConfigError, "nobody"):
            kfp_creds.start(listen=True, offline=True, config=config, identity="nobody")

    def test_errors_are_the_programs_own_lines(self):
        (self.folder / "kfp-creds.toml").write_text("colour = 1\n")
        with self.assertRaises(kfp_creds.ConfigError) as caught:
            kfp_creds.start(listen=True, offline=True)
        self.assertIn("colour", str(caught.exception))
        self.assertEqual(caught.exception.code, 78)
        self.assertNotIn("kfp-creds: ", str(caught.exception))
        self.assertNotIn("GCE_METADATA_ROOT", os.environ)
        (self.folder / "kfp-creds.toml").unlink()
        os.environ["DOCKER_HOST"] = f"unix://{self.folder}/none.sock"
        with self.assertRaises(kfp_creds.EngineError):
            kfp_creds.start(offline=True)
        with self.assertRaises(kfp_creds.UsageError):
            kfp_creds.start(offline=True, credentials_file="x")

    def test_a_second_session_in_a_process_is_refused(self):
        first = kfp_creds.start(listen=True, offline=True)
        self.assertIs(kfp_creds.current(), first)
        with self.assertRaisesRegex(kfp_creds.UsageError, "stop it first, because GCE_METADATA_HOST"):
            kfp_creds.start(listen=True, offline=True)
        first.stop()
        again = kfp_creds.start(listen=True, offline=True)
        # One that was killed is no hindrance, and can be started again.
        os.kill(again.pid, signal.SIGKILL)
        again._process.wait()
        again.start()
        self.assertTrue(again.running)


# kfp's own runner of processes, as a person uses it. `use_venv=False`: nothing is fetched.
PIPELINE = """
from kfp import dsl, local

@dsl.component
def who() -> str:
    import google.auth, google.auth.transport.requests
    credentials, project = google.auth.default()
    credentials.refresh(google.auth.transport.requests.Request())
    return credentials.service_account_email

@dsl.pipeline(name="processes")
def processes() -> str:
    return who().output

import contextlib, sys, kfp_creds
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
with contextlib.redirect_stdout(sys.stderr), kfp_creds.session(listen=True, offline=True):
    run = processes()
print(run.output)
"""


class Runner(Package):
    def test_a_pipeline_of_processes_has_the_identity_of_the_session(self):
        script = self.folder / "pipeline.py"
        script.write_text(PIPELINE)
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        env["PATH"] = f"{pathlib.Path(sys.executable).parent}:{env['PATH']}"
        ran = subprocess.run([sys.executable, script, self.folder / "root"], capture_output=True, text=True, env=env)
        self.assertEqual((ran.returncode, ran.stdout), (0, "offline@kfp-creds.invalid\n"), ran.stderr[-3000:])


class Ends(Package):
    START = "import kfp_creds, os, signal, sys, time\ns = kfp_creds.start(listen=True, offline=True)\nprint(s.pid, flush=True)\n"

    def test_the_server_ends_with_an_interpreter_that_is_killed(self):
        child = self.child(self.START + "sys.stdin.read()")
        pid = int(child.stdout.readline())
        self.assertFalse(gone(pid, 0.2))
        child.kill()
        child.communicate()
        self.assertTrue(gone(pid))

    def test_the_server_ends_with_an_interpreter_that_ends(self):
        child = self.child(self.START)
        pid = int(child.stdout.readline())
        self.assertEqual((child.communicate(), child.returncode), (("", None), 0))
        self.assertTrue(gone(pid, 1))

    def test_an_interrupt_is_for_the_interpreter_alone(self):
        more = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.killpg(0, signal.SIGINT)\ntime.sleep(0.3)\nprint(s.running)"
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        said = subprocess.run([sys.executable, "-c", self.START + more], capture_output=True, text=True, env=env,
                              start_new_session=True, check=True).stdout
        self.assertEqual(said.split()[1], "True")

    def test_a_forked_child_neither_ends_nor_keeps_the_session(self):
        more = """
if os.fork() == 0:
    child_runs = s.running
    s.stop()
    time.sleep(30)
    os._exit(0)
time.sleep(0.3)
print(s.running, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        child = self.child(self.START + more)
        pid = int(child.stdout.readline())
        self.assertEqual(child.stdout.readline().strip(), "True")
        child.wait()
        # The forked child still sleeps, and has no end of the pipe.
        self.assertTrue(gone(pid))
        child.stdin.close()
        child.stdout.close()


class Programs(Package):
    def test_the_module_is_the_program(self):
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        out = subprocess.run([sys.executable, "-m", "kfp_creds", "--version"], capture_output=True, text=True, env=env, check=True)
        self.assertEqual(out.stdout, subprocess.run([kfp_creds.find_bin(), "--version"], capture_output=True, text=True).stdout)
        out = subprocess.run([sys.executable, "-m", "kfp_creds", "run"], capture_output=True, env=env)
        self.assertEqual(out.returncode, 125)

    def test_a_program_that_is_not_there_is_told(self):
        os.environ["PATH"] = "/nowhere"
        with self.assertRaisesRegex(kfp_creds.ProgramNotFoundError, "pip install"):
            kfp_creds.find_bin()

    def test_the_magic_starts_shows_and_stops(self):
        shown = _ipython.run("start --offline --listen")
        self.assertIn("metadata server", shown._repr_html_())
        self.assertTrue(kfp_creds.current().running)
        self.assertIsNone(_ipython.run("stop"))
        self.assertIsNone(kfp_creds.current())
        with self.assertRaisesRegex(kfp_creds.KfpCredsError, "no session is active"):
            _ipython.run("status")
        with self.assertRaises(kfp_creds.UsageError):
            _ipython.run("begin")
        with self.assertRaises(kfp_creds.UsageError) as caught:
            _ipython.run("start --offline --token a-secret")
        self.assertIn("2 of the arguments", str(caught.exception))
        self.assertNotIn("a-secret", str(caught.exception))
        self.assertIsNone(kfp_creds.current())

    def test_an_end_is_no_cut_off(self):
        container = {"task": "p/c", "container": "abc", "exit_code": 0, "outstanding": None}
        told = _session._told("cut-off", {**container, "by_hand": False})
        self.assertEqual(told, "ended: task p/c, container abc, exit code 0")
        told = _session._told("cut-off", {**container, "by_hand": True, "exit_code": None})
        self.assertEqual(told, "cut off: task p/c, container abc")
        told = _session._told("ended", {"attached": 2, "cut_off": 2, "outstanding": 0, "until": None})
        self.assertEqual(told, "session ended: attached 2, ended 2, outstanding 0")

    def test_names_in_the_status_table_are_text(self):
        lease = {"container": "c" * 64, "task": "<script>x</script>", "identity": "default", "state": "live",
                 "tokens": [{"expires": "2026-01-01T00:00:00Z", "left": 5}]}
        source = {"account": "a@b", "project": "p", "kind": "offline", "last_failure": "2026-01-01T00:00:00Z", "why": "no <b>"}
        shown = kfp_creds.Status("docker", {}, {"leases": [lease], "source": source})
        self.assertIn("<td", shown._repr_html_())
        for text in ("<script>", "<b>", "c" * 13):
            self.assertNotIn(text, shown._repr_html_())
        self.assertIn("&lt;script&gt;", shown._repr_html_())
        self.assertIn("1, the last until 2026-01-01T00:00:00Z", str(shown))

    def test_what_a_container_holds_is_told_by_cloud(self):
        def token(kind, hour):
            return {"kind": kind, "expires": f"2026-01-01T{hour}:00:00Z", "left": hour}

        lease = {"container": "c" * 64, "task": "etl/load", "identity": "loader", "state": "live",
                 "tokens": [token("azure-token", 13), token("access", 12), token("azure-token", 14), token("aws-session", 11)]}
        shown = kfp_creds.Status("docker", {}, {"leases": [lease]})
        held = ("Google Cloud: 1, the last until 2026-01-01T12:00:00Z; AWS: 1, the last until 2026-01-01T11:00:00Z; "
                "Azure: 2, the last until 2026-01-01T14:00:00Z")
        self.assertIn(held, str(shown))
        self.assertIn(f">{held}</td>", shown._repr_html_())
        lease["tokens"] = []
        self.assertIn("  none", str(shown))


if __name__ == "__main__":
    unittest.main()
