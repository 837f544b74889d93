"""MLflow."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.callbacks.base import CallbackState
from vitrail.callbacks.metric_logger import MetricLogger, require_library

MAX_PARAMETERS = 100  # in one request


class MLflow(MetricLogger):
    """Logs to MLflow: to the server or the database that `tracking_uri`, or MLFLOW_TRACKING_URI, names.

    Without either, MLflow chooses its own local store. An example of a database is sqlite:///mlflow.db.
    """

    library, title = "mlflow", "MLflow"

    def __init__(self, experiment: str = "vitrail", *, tracking_uri: str | None = None, pictures: bool = True):
        super().__init__(pictures=pictures)
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def start(self, state: CallbackState, parameters: Mapping[str, Any]) -> None:
        mlflow = require_library("mlflow", self.title)
        self.client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self.client.get_experiment_by_name(self.experiment)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(self.experiment)
        self.run_id = self.client.create_run(experiment_id, run_name=state.folder.name).info.run_id
        logged = [mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
        for first in range(0, len(logged), MAX_PARAMETERS):
            self.client.log_batch(self.run_id, params=logged[first : first + MAX_PARAMETERS])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        mlflow = require_library("mlflow", self.title)
        now_ms = time.time_ns() // 1_000_000
        logged = [mlflow.entities.Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=logged)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def finish(self, is_complete: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if is_complete else "FAILED")
