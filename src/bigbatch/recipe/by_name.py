"""A field of a recipe whose section is one of a family's, chosen by a name in it."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from bigbatch.core.methods import Registry


class ByName:
    """Annotation of such a field: looks the section's class up in the registry, and so imports no method but the one that is named.

    What it accepts and refuses, and the place and type of its errors, are those of pydantic's union by a discriminator.

    Args:
        registry: Of the family.
        tag: Field of the sections that holds the name.
    """

    def __init__(self, registry: Registry, tag: str) -> None:
        self.registry, self.tag = registry, tag
        self._validator = cache(self._validator_of)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called by pydantic."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Called by pydantic for `Recipe.model_json_schema()`, which describes all methods, and so imports them all."""
        choices = {name: self.registry[name].section.__pydantic_core_schema__ for name in self.registry}
        return handler(core_schema.tagged_union_schema(choices, self.tag))

    def _validate(self, value: Any) -> Any:
        name = value.get(self.tag) if isinstance(value, Mapping) else getattr(value, self.tag, None)
        return self._validator(name if isinstance(name, str) and name in self.registry else None).validate_python(value)

    def _validator_of(self, name: str | None) -> SchemaValidator:
        choices = {} if name is None else {name: self.registry[name].section.__pydantic_core_schema__}
        return SchemaValidator(core_schema.tagged_union_schema(choices, self.tag))
