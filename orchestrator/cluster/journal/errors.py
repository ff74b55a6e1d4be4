"""Why a journal cannot be opened, each with what to do about it."""


class JournalError(Exception):
    """The journal cannot be used; the text says what is in the way and what to do."""


class JournalBusyError(JournalError):
    """Another scheduler has the folder."""


class JournalVersionError(JournalError):
    """A later release wrote the journal, in a form that this one does not know."""


class JournalFolderError(JournalError):
    """The folder or a file in it cannot be read or written."""
