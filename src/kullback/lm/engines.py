"""The engines that run one table expression: DuckDB in the process, Spark, or a warehouse.

Which to use: `connect` for an engine by name or connection string; `Engine.run` for an expression's
rows as an Arrow table. `compiled` gives the SQL that an expression would be for another engine.

Every figure is written once, as an Ibis expression. Only reading files differs: DuckDB and Spark
read them, a warehouse has tables by name.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kullback.core import (
    ArgumentValueError,
    DataError,
    MissingExtraError,
    RunError,
    import_extra,
    message,
)

__all__ = ["Engine", "compiled", "connect", "ibis_false", "ibis_module"]

_DISK = ("No space left", "disk is full", "Disk full")


@dataclass(frozen=True, slots=True)
class Engine:
    """A connection, and what it can do.

    name: "duckdb", "pyspark", or a warehouse's. connection: Ibis's backend. reads_files: whether
    tables are files rather than names. numbers_rows: whether rows have an order that can be asked.
    errors: the exceptions that mean that a query failed.
    """

    name: str
    connection: Any
    errors: tuple[type[Exception], ...]
    reads_files: bool = False
    numbers_rows: bool = False
    session: Any = None  # Spark's own

    def run(self, expression: Any, what: str) -> Any:
        """Return an expression's rows as a `pyarrow.Table`; `what` is read, for messages.

        Raises:
            DataError: The engine cannot read the data, or not compute with them.
            RunError: The disk is full.
        """
        with self.guarded(what):
            return self.connection.to_pyarrow(expression)

    def distrust_statistics(self) -> None:
        """Let DuckDB make the comparisons that a Parquet file's statistics seem to decide.

        Writers leave NaN out of a column's least and largest value. DuckDB concludes from these
        that every value lies between, and that none is NaN. Distrust takes a third more time.
        """
        if self.name == "duckdb":
            self.connection.raw_sql("SET disabled_optimizers = 'statistics_propagation'")

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn the engine's exceptions into this package's, with `what` could not be read."""
        try:
            with warnings.catch_warnings():  # of Ibis, about how it calls DuckDB
                warnings.simplefilter("ignore", DeprecationWarning)
                yield
        except self.errors as error:
            text = _in_one_line(error).partition(" LINE 1:")[0].rstrip(".")  # LINE 1: of the SQL
            if any(word in text for word in _DISK):
                raise RunError(f"{self.name}: {text[:300]}. Try: more room on the disk") from error
            hint = "Try: copy or write the file again" if self.reads_files else "Try: another table"
            raise DataError(
                f"{what}: cannot be read by {self.name}: {text[:300]}. {hint}"
            ) from error


def ibis_module() -> Any:
    """Import Ibis, or say how to install it."""
    return import_extra("ibis", "tables")


def ibis_false() -> Any:
    """Return SQL's false."""
    return ibis_module().literal(value=False)


def connect(engine: str | None = None) -> Engine:
    """Return an engine by name: "duckdb" (the default), "spark", or a connection string.

    Args:
        engine: None or "duckdb" for DuckDB in this process; "spark" for the active Spark session,
            or a local one; else a connection string as Ibis takes it, such as
            "bigquery://project/dataset" or "snowflake://user@account/database".

    Returns:
        An `Engine`.

    Raises:
        MissingExtraError: Ibis, DuckDB or PySpark is not installed.
        RunError: The engine does not start or answer.
        ValueError: An unknown name.

    Example:
        >>> connect().name
        'duckdb'
    """
    ibis = ibis_module()
    if engine is None or engine == "duckdb":
        duckdb = import_extra("duckdb", "tables")
        connection = ibis.duckdb.connect()
        return Engine("duckdb", connection, (duckdb.Error,), reads_files=True, numbers_rows=True)
    if engine in ("spark", "pyspark"):
        return _spark(ibis)
    if "://" not in engine:
        expected = "duckdb, spark or a connection string such as bigquery://project/dataset"
        raise ArgumentValueError(message("engine", expected, repr(engine)))
    return _warehouse(ibis, engine)


def compiled(expression: Any, dialect: str) -> str:
    """Return the SQL that an expression is in a dialect: "duckdb", "bigquery", "snowflake", ….

    Example:
        >>> import ibis
        >>> table = ibis.table({"log_p": "float64"}, name="tokens")
        >>> print(compiled(table.log_p.sum(), "bigquery").splitlines()[0])
        SELECT
    """
    return str(ibis_module().to_sql(expression, dialect=dialect))


def _spark(ibis: Any) -> Engine:
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingExtraError(
            "pyspark is not installed; it comes with: pip install pyspark, and needs Java "
            "(default-jre-headless)"
        ) from error
    os.environ.setdefault("TZ", "UTC")
    try:
        session = SparkSession.builder.appName("kullback").getOrCreate()
    except (PySparkException, Py4JError, OSError, RuntimeError) as error:
        text = _in_one_line(error)[:200].rstrip(".")
        raise RunError(
            f"engine: Spark does not start: {text}. Try: install Java (default-jre-headless), or "
            "set SPARK_REMOTE, or leave --engine out"
        ) from error
    errors = (PySparkException, Py4JError)
    connection = ibis.pyspark.connect(session)
    return Engine("pyspark", connection, errors, reads_files=True, session=session)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _warehouse(ibis: Any, url: str) -> Engine:
    scheme = url.partition("://")[0]
    try:
        connection = ibis.connect(url)
    except ImportError as error:
        reason = _in_one_line(error).partition(".")[0]
        hint = f"pip install 'ibis-framework[{scheme}]'"
        raise MissingExtraError(f"engine {scheme}: {reason}. Try: {hint}") from error
    except Exception as error:  # every backend has errors of its own
        raise RunError(f"engine: {scheme} does not answer: {_in_one_line(error)}") from error
    return Engine(connection.name, connection, (Exception,))
