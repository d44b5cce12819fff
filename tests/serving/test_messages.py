"""The table's messages are the published ones, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as published

from embstore.serving.messages import SERVICE, message, messages


def fields(descriptor: Any) -> dict[str, Any]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type and field.message_type.full_name,
            field.message_type and field.message_type.GetOptions().map_entry,
            field.containing_oneof and field.containing_oneof.name,
            field.has_presence,
            fields(field.message_type) if field.message_type and field.message_type.GetOptions().map_entry else None,
        )
        for field in descriptor.fields
    }


@pytest.mark.parametrize("name", messages())
def test_message_is_the_published_one(name: str) -> None:
    of: Any = published
    for part in name.split("."):
        of = getattr(of, part)
    ours = message(name).DESCRIPTOR
    assert ours.full_name == of.DESCRIPTOR.full_name
    assert fields(ours) == fields(of.DESCRIPTOR)
    assert {one.name for one in ours.nested_types} == {one.name for one in of.DESCRIPTOR.nested_types}


def test_all_messages_of_the_methods_are_there() -> None:
    service = published.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]]
    assert service.full_name == SERVICE
    named = {of.name for method in service.methods for of in (method.input_type, method.output_type)}
    ours = {name for name in messages() if name.endswith(("Request", "Response"))}
    assert ours < named
    assert len(ours) == 18


def test_bytes_are_the_published_ones() -> None:
    request = published.ModelInferRequest(model_name="shop", model_version="é", raw_input_contents=[b"\0\1"])
    tensor = request.inputs.add(name="user", datatype="BYTES", shape=[3, -1])
    tensor.contents.bytes_contents.extend([b"a", b""])
    request.parameters["timeout"].int64_param = -5
    ours = message("ModelInferRequest").FromString(request.SerializeToString())
    assert ours.SerializeToString() == request.SerializeToString()
    assert ours.parameters["timeout"].WhichOneof("parameter_choice") == "int64_param"
