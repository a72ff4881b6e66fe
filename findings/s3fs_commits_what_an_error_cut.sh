#!/usr/bin/env bash
# s3fs 2026.9.0, fsspec 2026.9.0: an error inside `with fs.open(path, "wb")` commits what was written so far, in the
# place of the whole object that was there.
#
#   small: before 100 bytes of A, after the error 40 bytes of B
#   multipart: before 100 bytes of A, after the error 15728650 bytes of B
#   in a transaction: before 100 bytes of A, after the error 100 bytes of A
#
# S3 itself has no half objects: a PUT or a multipart upload is there whole or not at all, and an upload that is not
# completed changes nothing. So a good guess is that a checkpoint which fails half way (a full memory, an interrupt, a
# tensor that can't be read) leaves the last good one alone, as botocore's upload_fileobj does. But leaving the block
# closes the file, closing completes the upload, and the good object is gone, the new one cut and of a valid ETag. On a
# local disk people know that "wb" truncates and write beside and rename; here nothing warns. Join the bytes and put them
# at once (fs.pipe), or write within fs.transaction, which discards.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet s3fs==2026.9.0 fsspec==2026.9.0 "moto[server]==5.2.5"
"$folder/venv/bin/python" - <<'PY'
import contextlib
import logging
import os

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"})
files.call_s3("create_bucket", Bucket="run", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})


def content(path: str) -> tuple[int, str]:
    files.invalidate_cache()
    whole = files.cat(path)
    return len(whole), whole[:1].decode()


def cut(path: str, pieces: list[bytes], around: contextlib.AbstractContextManager) -> tuple[int, str]:
    files.pipe(path, b"A" * 100)
    with contextlib.suppress(RuntimeError), around, files.open(path, "wb", block_size=5 * 2**20) as file:
        for piece in pieces:
            file.write(piece)
        raise RuntimeError("the rest could not be read")
    return content(path)


large = [b"B" * 5 * 2**20] * 3 + [b"B" * 10]
found = {
    "small": cut("run/small.ckpt", [b"B" * 40], contextlib.nullcontext()),
    "multipart": cut("run/large.ckpt", large, contextlib.nullcontext()),
    "in a transaction": cut("run/other.ckpt", [b"B" * 40], files.transaction),
}
for name, (size, letter) in found.items():
    print(f"{name}: before 100 bytes of A, after the error {size} bytes of {letter}")
server.stop()
if found["small"] != (40, "B") or found["multipart"] != (15 * 2**20 + 10, "B"):
    raise SystemExit("s3fs does otherwise now")
assert found["in a transaction"] == (100, "A")
PY
