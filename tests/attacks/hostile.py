"""What is put into requests where something else is expected."""

from __future__ import annotations

from typing import Any

HUGE = 1 << 62
SHAPES: list[list[Any]] = [
    *([], [0], [-1], [1], [2], [3], [4], [3, 1], [1, 3], [3, 0], [0, 3], [3, 2], [-3, -1], [HUGE, 4], [0, HUGE]),
    *([HUGE, 0], [HUGE] * 8, [2**31, 2**33], [2**63 - 1], [-(2**63)], [1] * 8 + [3], [3] + [1] * 7, [1] * 1000),
    *([10**6, 0], [0] * 8, [200_000], [200_001], [2**32], [2**32 + 3]),
]
JSON_SHAPES: list[Any] = [None, "3", [None], ["3"], [3.0], [True], [[3]], {"0": 3}, [1e300], [2**64], [2**64 - 1], 3]
DATATYPES = ["BYTES", "INT64", "BOOL", "FP32", "FP64", "FP16", "INT8", "UINT64", "BF16", "", "bytes", "\0", "STRING"]
NAMES = [
    *[
        "user",
        "item",
        "tags",
        "country",
        "hour",
        "price",
        "user.missing",
        "tags.lengths",
        "tags.missing",
        "hour.lengths",
        "user.lengths",
    ],
    *[
        "user.vector",
        "item.vector",
        "item.missing",
        "price.missing",
        "age.lengths",
        ".",
        "..",
        "a.b",
        "user.missing.missing",
    ],
    *("", "__proto__", "constructor", "x" * 5000, "\0", "é" * 300, "user\n", "../../etc/passwd"),
]
OUTPUTS = [
    *[
        "embedding",
        "score",
        "user.embedding",
        "user.status",
        "user.neighbors",
        "user.scores",
        "item.neighbors",
        "tags.neighbors",
    ],
    *[
        "item.scores",
        "tags.embedding",
        "hour.status",
        "price.embedding",
        ".",
        "neighbors",
        ".neighbors",
        "x.scores",
        "embedding.",
    ],
    *("", "\0", "__proto__", "x" * 5000, "user.embedding.embedding", "user.vector"),
]
DATA: list[Any] = [
    *([], [None] * 3, ["a", "b", "c"], [1, 2, 3], [0.5] * 3, [True] * 3, ["a", 1, None], [[1], [2], [3]], [[[]]], [{}]),
    *([1, [2], 3], [2**63, 0, 0], [-(2**63), 0, 1], [2**64, 1, 1], [1e400, 1, 1], ["x" * 65_536] * 3, [[1, 2], [3]]),
    *(["x" * 65_537, "", ""], ["\0", "\uffff", "🜁"], [-1, -1, -1], [4, -1, 0], [HUGE, HUGE, HUGE], None, "abc", {}),
    *(7, [24, -1, 0], [10**18] * 3),
]
PARAMETERS: list[Any] = [
    *(None, True, False, 0, 1, -1, 10_000, 10_001, HUGE, 2**64 - 1, 0.5, 1e308, "", "3", "x" * 5000, [], {}, [3]),
    {"k": 3},
]
PARAMETER_NAMES = [
    "k",
    "exact",
    "timeout",
    "binary_data_size",
    "binary_data",
    "binary_data_output",
    "classification",
    "x",
]
LENGTHS = ["0", "-1", "", "x", "1", "9" * 30, "+5", "0x10"]

HEADERS = [
    *rb"""Content-Length: 0
Content-Length: -1
Content-Length: 1e3
Content-Length: 99999999999999999999
Content-Length: 8388609
Content-Length: 5, 5
Content-Length:
Transfer-Encoding: chunked
Transfer-Encoding: gzip, chunked
Transfer-Encoding: xchunked
Transfer-Encoding : chunked
Host: evil.example
Host: localhost
Host:
Expect: 100-continue
Expect: x
Connection: close
Content-Encoding: gzip
Content-Encoding: identity
Content-Encoding: br
Inference-Header-Content-Length: 3
Inference-Header-Content-Length: -1
Inference-Header-Content-Length: 999999999999
Inference-Header-Content-Length:
Content-Type: application/json; charset=utf-16
Accept-Encoding: gzip
Range: bytes=0-1
 folded
: empty
no colon""".split(b"\n"),
    *(b"Connection: upgrade\r\nUpgrade: h2c", b"Connection: upgrade\r\nUpgrade: websocket", b"\0: \0", b"X\xff: 1"),
    *(b"Inference-Header-Content-Length: \xb2", b"Authorization: Bearer \xff\xfe"),
    *(b"X: " + b"y" * 60_000, b"X: " + b"y" * 70_000),
]
LINES = [
    *rb"""GET /v2 HTTP/1.1
GET / HTTP/1.0
HEAD /v2 HTTP/1.1
GET /v2
GET  /v2 HTTP/1.1
get /v2 HTTP/1.1
POST /v2/models/shop/infer HTTP/1.1
POST /v2/models/shop/infer HTTP/9.9
PRI * HTTP/2.0
OPTIONS * HTTP/1.1
CONNECT localhost:80 HTTP/1.1
TRACE / HTTP/1.1
PUT /v2/models/shop/infer HTTP/1.1
POST /v2/models/ HTTP/1.1
GET http://evil.example/v2 HTTP/1.1
GET //v2 HTTP/1.1
GET /../../etc/passwd HTTP/1.1
GET /%2e%2e/x HTTP/1.1
GET /%00 HTTP/1.1
GET /%ff%fe HTTP/1.1
GET /%zz HTTP/1.1
GET ? HTTP/1.1
POST /v2/models/sh%6fp/versions/%2e%2e%2f/infer HTTP/1.1
POST /api/promote HTTP/1.1
POST /v2/repository/index HTTP/1.1
POST /v2/repository/models/shop/load HTTP/1.1
GET /metrics?token=x HTTP/1.1
""".split(b"\n"),
    *(b"GET /\xff\xfe HTTP/1.1", b"GET /v2/models/shop/versions/\xc3\xa9 HTTP/1.1", b"\r\n\r\n"),
    b"GET /" + b"a/" * 20_000 + b" HTTP/1.1",
]
METHODS = [
    *[
        "ModelMetadata",
        "ModelReady",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ServerMetadata",
    ],
    *("ServerLive", "ServerReady", "Nothing", ""),
]
