// Lints the JavaScript of the web page and of the report: `npx eslint`, a part of `make check`.
import js from "@eslint/js";
import globals from "globals";

const rules = {
  "no-sequences": "error",
  "no-var": "error",
  "prefer-const": "error",
  eqeqeq: "error",
  "max-len": ["error", { code: 120, ignoreStrings: false, ignoreTemplateLiterals: false }],
};

// exporting/web/bundle.py joins the page's modules and knows these forms of import and export alone.
const bundled = [
  ["ImportDefaultSpecifier", "use named imports"],
  ["ImportNamespaceSpecifier", "use named imports"],
  ["ExportDefaultDeclaration", "use named exports"],
  ["ExportAllDeclaration", "use named exports"],
  ["ExportNamedDeclaration[declaration=null]", "export where the name is declared"],
  ["ExportNamedDeclaration > VariableDeclaration[kind!='const']", "export constants and functions alone"],
  ["ExportNamedDeclaration > VariableDeclaration > VariableDeclarator[id.type!='Identifier']", "export one name"],
];

export default [
  js.configs.recommended,
  {
    files: ["src/vitrail/exporting/web/site/**/*.js", "docs/_static/*.js"],
    languageOptions: { globals: globals.browser },
  },
  {
    files: ["src/vitrail/exporting/web/site/**/*.js"],
    rules: {
      ...rules,
      "no-restricted-syntax": ["error", ...bundled.map(([selector, message]) => ({ selector, message }))],
    },
  },
  {
    files: ["src/vitrail/exporting/web/site/worker.js"],
    languageOptions: { globals: globals.worker },
  },
  {
    files: ["src/vitrail/report/**/*.js"],
    languageOptions: { globals: globals.browser, sourceType: "script" },
    rules,
  },
  { ignores: ["node_modules/", ".venv*/", "build/", "dist/", "runs/", "data/"] },
];
