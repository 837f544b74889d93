// The commands that make the view again.

import { columnCommands, explainCommands } from "../commands.js";
import { byId } from "../dom.js";
import { info } from "../info.js";
import { attentionQuery, chosenHead, className, comparedLabel, explainedLabel, fileName } from "../selectors.js";
import { viewMap } from "../view-map.js";

export function renderCommands(state) {
  const view = {
    method: viewMap(state).method || info.method,
    label: className(explainedLabel(state)),
    against: className(comparedLabel(state)),
    layer: state.view === "evidence" ? null : state.layer,
    head: chosenHead(state),
    query: attentionQuery(state),
  };
  const isColumn = state.direction === "from" && view.query !== null;
  const { shell, python } = isColumn
    ? columnCommands(info, view, state.patch, fileName(state))
    : explainCommands(info, view, fileName(state));
  byId("shell").textContent = shell ? `$ ${shell}` : "";
  byId("python").textContent = python;
}
