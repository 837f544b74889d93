// Wide code and tables scroll sideways: people who use a keyboard reach them with Tab.
addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll("pre, .table-wrapper")) {
    if (element.scrollWidth > element.clientWidth) {
      element.tabIndex = 0;
    }
  }
});
