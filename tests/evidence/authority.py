"""A time-stamp authority of the tests' own: `openssl ts`, offline or behind a local address."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

SETTINGS = """
[tsa]
default_tsa = one
[one]
serial = serial
signer_cert = tsa.crt
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
tsa_name = no
ess_cert_id_alg = sha256
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[signs]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
[req]
distinguished_name = dn
[dn]
"""


class Authority:
    """A root certificate, ``root.crt``, and an authority under it that answers requests, in a folder of its own."""

    def __init__(self, folder: Path, name: str = "Example"):
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "settings").write_text(SETTINGS)
        (folder / "serial").write_text("01\n")
        key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -config settings"
        self.run(f"req -x509 {key} -keyout root.key -out root.crt -days 30 -extensions root", f"/CN={name} root")
        self.run(f"req {key} -keyout tsa.key -out tsa.csr", f"/CN={name}")
        sign = "-CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile settings -extensions signs"
        self.run(f"x509 -req -in tsa.csr {sign} -out tsa.crt")

    def run(self, words: str, subject: str | None = None) -> None:
        command = ["openssl", *words.split(), *(["-subj", subject] if subject else [])]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @property
    def root(self) -> Path:
        """Its root certificate, in PEM."""
        return self.folder / "root.crt"

    def answer(self, request: bytes) -> bytes:
        """The token, in answer to a request."""
        (self.folder / "request.tsq").write_bytes(request)
        self.run("ts -reply -config settings -section one -queryfile request.tsq -out answer.tsr")
        return (self.folder / "answer.tsr").read_bytes()

    @contextmanager
    def address(self) -> Iterator[str]:
        """Where it answers on this machine, for as long as this lasts."""
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                token = answer(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.end_headers()
                self.wfile.write(token)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()
