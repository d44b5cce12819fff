"""Vectors and scores of published versions for ranking services: in process, and by the Open Inference Protocol.

reader.py     one version: raw values -> vectors, statuses, scores
values.py     raw values as they come, in Arrow or in the protocol's tensors -> tokens
protocol.py   requests and responses, the same for gRPC and HTTP
versions.py   which version each name means now, opened; a swap loses no request
service.py    a request -> its response
messages.py   the protocol's protobuf messages
grpc.py       the protocol over gRPC
http.py       an ASGI application; asgi.py, bodies.py and connections.py are its parts
client.py     asks a server over HTTP, without torch
settings.py   what a server is started with; tls.py, sockets.py, logs.py: its certificates, ports and log
supervisor.py the process in front of those that answer, worker.py
"""
