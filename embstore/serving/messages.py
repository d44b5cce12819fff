"""The Open Inference Protocol's protobuf messages, built from a table when imported.

They live in a descriptor pool of their own: another package's ``inference`` messages in the same process don't clash,
and nothing is generated, so any protobuf from 5.27 on will do.

Source: the protocol's ``open_inference_grpc.proto`` and, for the ``Repository...`` messages, Triton's
``grpc_service.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Of each message its fields: number, name, type. T* is repeated T, map<T> is by string, T| is one of the message's
# parameter_choice.
_FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 ready bool",
    "ModelReadyRequest": "1 name string, 2 version string",
    "ModelReadyResponse": "1 ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 name string, 2 version string, 3 extensions string*",
    "ModelMetadataRequest": "1 name string, 2 version string",
    "ModelMetadataResponse": "1 name string, 2 versions string*, 3 platform string, 4 inputs .TensorMetadata*,"
    " 5 outputs .TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": "1 name string, 2 datatype string, 3 shape int64*",
    "InferParameter": "1 bool_param bool|, 2 int64_param int64|, 3 string_param string|, 4 double_param double|,"
    " 5 uint64_param uint64|",
    "InferTensorContents": "1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*,"
    " 4 uint_contents uint32*, 5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*,"
    " 8 bytes_contents bytes*",
    "ModelInferRequest": "1 model_name string, 2 model_version string, 3 id string, 4 parameters map<InferParameter>,"
    " 5 inputs .InferInputTensor*, 6 outputs .InferRequestedOutputTensor*, 7 raw_input_contents bytes*",
    "ModelInferRequest.InferInputTensor": "1 name string, 2 datatype string, 3 shape int64*,"
    " 4 parameters map<InferParameter>, 5 contents InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "1 name string, 2 parameters map<InferParameter>",
    "ModelInferResponse": "1 model_name string, 2 model_version string, 3 id string, 4 parameters map<InferParameter>,"
    " 5 outputs .InferOutputTensor*, 6 raw_output_contents bytes*",
    "ModelInferResponse.InferOutputTensor": "1 name string, 2 datatype string, 3 shape int64*,"
    " 4 parameters map<InferParameter>, 5 contents InferTensorContents",
    "ModelRepositoryParameter": "1 bool_param bool|, 2 int64_param int64|, 3 string_param string|,"
    " 4 bytes_param bytes|",
    "RepositoryIndexRequest": "1 repository_name string, 2 ready bool",
    "RepositoryIndexResponse": "1 models .ModelIndex*",
    "RepositoryIndexResponse.ModelIndex": "1 name string, 2 version string, 3 state string, 4 reason string",
    "RepositoryModelLoadRequest": "1 repository_name string, 2 model_name string,"
    " 3 parameters map<ModelRepositoryParameter>",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "1 repository_name string, 2 model_name string,"
    " 3 parameters map<ModelRepositoryParameter>",
    "RepositoryModelUnloadResponse": "",
}
_CHOICE = "parameter_choice"
_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    """The table as protobuf has it."""
    file = descriptor_pb2.FileDescriptorProto(name="embstore/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in _FIELDS.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        made[name] = message
        for field in filter(None, fields.split(",")):
            number, field_name, kind = field.split()
            _add_field(message, name, int(number), field_name, kind)
    return file


def _add_field(message: Any, path: str, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("map<"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", 1, "key", "string")
        _add_field(entry, "", 2, "value", kind[4:-1])
        kind = f".{entry.name}*"
    if kind.endswith("*"):
        field.label = _Field.LABEL_REPEATED
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name=_CHOICE)
        field.oneof_index = 0
    kind = kind.rstrip("*|")
    if kind[0] == "." or kind[0].isupper():
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{path if kind[0] == '.' else ''}{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())


def messages() -> Iterable[str]:
    """Names of all messages."""
    return _FIELDS.keys()


def message(name: str) -> Any:
    """The class of a message, by its name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
