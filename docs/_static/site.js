addEventListener("DOMContentLoaded", () => {
  // Wide code and tables scroll sideways: people who use a keyboard reach them with Tab.
  for (const element of document.querySelectorAll("pre, .table-wrapper")) {
    if (element.scrollWidth > element.clientWidth) {
      element.tabIndex = 0;
    }
  }
  // What the theme leaves out for screen readers: names of the two side bars, levels of the captions.
  document.querySelector("aside.sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector("aside.toc-drawer")?.setAttribute("aria-label", "On this page");
  for (const caption of document.querySelectorAll(".caption[role=heading]")) {
    caption.setAttribute("aria-level", "2");
  }
});
