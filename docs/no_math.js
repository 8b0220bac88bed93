/* No page has a formula: mkdocs-jupyter would fetch MathJax from elsewhere for each tutorial. */
window.MathJax = {
  startup: {promise: Promise.resolve()},
  typesetPromise: () => Promise.resolve(),
  typesetClear: () => {},
  texReset: () => {},
};
