// KaTeX typesets what arithmatex has marked.
document$.subscribe(({body}) => renderMathInElement(body, {
  delimiters: [{left: "\\(", right: "\\)", display: false}, {left: "\\[", right: "\\]", display: true}],
  throwOnError: false,
}))
