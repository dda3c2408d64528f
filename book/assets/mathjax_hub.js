// A widget with a label asks for MathJax 2 (`MathJax.Hub.Queue(["Typeset", MathJax.Hub, element])`) and
// throws on a page that has MathJax 3 (jupyter-widgets/ipywidgets#3829). Pass the wish on.
if (window.MathJax) {
  MathJax.Hub = {
    Queue(...tasks) {
      for (const task of tasks) {
        if (typeof task === "function") task();
        else if (task[0] === "Typeset") MathJax.startup.promise.then(() => MathJax.typesetPromise([task[2]]));
      }
    },
  };
}
