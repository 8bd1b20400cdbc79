"""Everything Attune raises on purpose.

    AttuneError
    ├── ConfigError            a recipe or setting is wrong
    ├── DatabaseError          the database cannot be used
    │   └── SchemaVersionError its schema is older or newer than this code
    ├── NotFoundError          a named thing does not exist
    ├── StoreError             a clip, adapter or file is missing, altered or cannot be written
    ├── ModelError             a folder or file is not a model Attune can load
    │   └── ShapeError         tensors that do not fit together
    ├── DataError              votes, pairs or audio that cannot be used for what was asked
    │   └── PromptRefused      a typed prompt that is not sung; its sentence is for the rater
    ├── LoginRefused           a name and password that open no account, or too many attempts
    ├── VoteRejected           a vote that must not be recorded
    │   ├── AssignmentExpired  the pair was served too long ago
    │   └── ListeningTooShort  a clip was not heard long enough
    └── TrainingError          a training run that had to stop

A message states what was found, what is needed and the next step. Only the command line and the web app
turn these into one line; anything else keeps its traceback.
"""

from __future__ import annotations


class AttuneError(Exception):
    """Base of every error a person can act on."""


class ConfigError(AttuneError):
    """A recipe or setting is wrong."""


class DatabaseError(AttuneError):
    """The database cannot be used."""


class SchemaVersionError(DatabaseError):
    """The database's schema is older or newer than this code."""


class NotFoundError(AttuneError):
    """A named version, study, snapshot, reward model or file does not exist."""


class StoreError(AttuneError):
    """A stored file is missing or altered, or cannot be written."""


class ModelError(AttuneError):
    """A folder or file is not a model Attune can load."""


class ShapeError(ModelError):
    """Tensors that do not fit together."""


class DataError(AttuneError):
    """Votes, pairs or audio that cannot be used for what was asked."""


class LoginRefused(AttuneError):
    """A name and password that open no account, or too many attempts."""


class PromptRefused(DataError):
    """A typed prompt that is not sung. The sentence is for the rater who typed it."""


class VoteRejected(AttuneError):
    """A vote that must not be recorded."""


class AssignmentExpired(VoteRejected):
    """The pair was served too long ago."""


class ListeningTooShort(VoteRejected):
    """A clip was not heard for the study's minimum."""


class TrainingError(AttuneError):
    """A training run that had to stop."""
